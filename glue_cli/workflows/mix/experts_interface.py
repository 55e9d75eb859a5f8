"""What a mix does with its experts, whatever they are: a model, a search's blends, and the blend on disk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.naming import Naming
from glue_cli.foundation.output_files import copy_into, write_all, writing
from glue_cli.foundation.run import Run
from glue_cli.results.card import About, make_card
from glue_cli.running.device import Compute, find_device, likes_channels_last
from glue_cli.running.forgetting import let_forget
from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.bound_models import MakeTensors
from glue_cli.search.protocol import BLENDED_STATISTICS, BatchNormMode, Blends

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec

Describe = Callable[[Sequence[str | None]], dict[str, Any]]  # the experts' sha256 [K] -> glue's metadata


@dataclass(frozen=True)
class How:
    """How blends are run: the seed of the forwards' random state, BatchNorm, and the tensors that are not blended."""

    seed: int
    batchnorm: BatchNormMode
    make_tensors: MakeTensors


class Experts(ABC):
    """What a mix does with its experts.

    Attributes:
        header: of the blend, as for a checkpoint: the names, dtypes and shapes of its tensors.
    """

    header: Checkpoint
    _naming: Naming  # of the header's tensors in the model
    _destination: Destination
    _about: About  # for the model card

    def model(self, spec: "Spec", alphas: Tensor) -> nn.Module:
        """Return the spec's model with the blend for `alphas` [G, K], in memory.

        Raises:
            CheckpointError: the blend does not fit the model, or an expert has NaN or infinity.
        """
        model = self._build(spec)
        tensors = {**self._tensors(alphas.tolist()), **self._make(alphas)}
        model.load_state_dict(self._naming.in_memory(tensors), strict=False)
        return model

    def dtypes(self) -> dict[str, str]:
        """Return the dtypes of the blend's tensors on disk, by their names in the model; `blends` comes first."""
        entries = self.header.entries
        parts = {name: source.names[0] for name, source in self._naming.sources.items()}
        return {name: entries[part].dtype for name, part in parts.items() if part in entries}

    def blends(
        self,
        spec: "Spec",
        run: Run,
        *,
        seed: int,
        n_blends: int,
        batchnorm: BatchNormMode = BLENDED_STATISTICS,
        needs_gradient: bool = False,
    ) -> Blends:
        """Return what yields the outputs of blends, in float32 until another precision is chosen.

        Args:
            seed: for the random state of the forwards.
            n_blends: how many blends are used at once.
        Raises:
            CheckpointError: the experts do not fit the model, or one has NaN or infinity.
            ResourceError: they do not fit the memory.
        """
        from glue_cli.models.tensors import check_names

        model = self._build(spec, weightless=True)
        check_names(model)
        self._check_tied(model)
        let_forget(model)
        compute = Compute(find_device(run.device), channels_last=likes_channels_last(model))
        how = How(seed, batchnorm, self._make_in_memory)
        return self._provide(model, compute, spec, how, n_blends, needs_gradient, run)

    @abstractmethod
    def write(
        self,
        alphas: Tensor,
        made: dict[str, Tensor],
        describe: Describe,
        hashes: Sequence[StreamedHash],
        run: Run,
    ) -> Sequence[str | None]:
        """Write the blend; return the experts' sha256 [K], each None if it was not taken.

        Args:
            made: tensors to write in place of blended ones, by their names in the model.
            hashes: the experts' sha256 [K], to be completed; empty to take none.
        """

    @property
    @abstractmethod
    def _n_coefficients(self) -> tuple[int, int]:
        """The shape [G, K] of alpha."""

    def _build(self, spec: "Spec", *, weightless: bool = False) -> nn.Module:
        """Return the spec's model, and learn how its tensors are called on disk."""
        from glue_cli.models import build_model
        from glue_cli.models.weights import check_fits_model

        model = build_model(spec.model.arch, spec.model_args, seed=0, folder=spec.path("."), weightless=weightless)
        self._naming = check_fits_model(model, self.header, spec)
        return model

    @abstractmethod
    def _check_tied(self, model: nn.Module) -> None:
        """Check that the experts have as one what the model has as one tensor under several names.

        Raises:
            CheckpointError: they have not.
        """

    def _fill_but(self, model: nn.Module, blended: Collection[str], spec: "Spec") -> None:
        """Give a weightless model the tensors that are not blended; those that are made get any values."""
        from glue_cli.running.weightless import fill

        n_groups, n_experts = self._n_coefficients
        first = torch.eye(n_experts, dtype=torch.float64)[:1].expand(n_groups, n_experts)
        sources = {name: source for name, source in self._naming.distinct() if name not in blended}
        tensors = self._tensors(first.tolist(), [part for source in sources.values() for part in source.names])
        fill(model, Naming(sources, ()).in_memory({**tensors, **self._make(first)}))
        self._fill_fresh(model, spec)

    def _fill_fresh(self, model: nn.Module, spec: "Spec") -> None:
        """Give a weightless model the initial values of what the experts need not have."""
        from glue_cli.running.weightless import fill, without_values

        if fresh := without_values(model) - {*self._naming.sources}:
            values = dict(self._build(spec).named_parameters(remove_duplicate=False))
            fill(model, {name: values[name] for name in fresh})

    @abstractmethod
    def _provide(
        self, model: nn.Module, compute: Compute, spec: "Spec", how: How, n_blends: int, needs_gradient: bool, run: Run
    ) -> Blends:
        """Return what yields the outputs of blends of a weightless model."""

    def _resident(self, model: nn.Module, compute: Compute, spec: "Spec", how: How, bank: ExpertBank) -> Blends:
        self._fill_but(model, bank.spans.keys(), spec)
        return ResidentBlends(
            compute.to_device(model),
            bank,
            compute,
            seed=how.seed,
            batchnorm=how.batchnorm,
            make_tensors=how.make_tensors,
        )

    @abstractmethod
    def _tensors(self, alphas: Sequence[Sequence[float]], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return tensors of the blend in memory, by their names on disk: all, or those with these names."""

    def _make_in_memory(self, alphas: Tensor) -> dict[str, Tensor]:
        """Return the tensors that are computed from `alphas` [G, K] other than by blending; differentiable."""
        return self._naming.in_memory(self._make(alphas))

    def _make(self, alphas: Tensor) -> dict[str, Tensor]:
        """Return the tensors of `_make_in_memory`, by their names on disk."""
        return {}

    @abstractmethod
    def _rewritten(self, source: Path, copy: Path) -> bytes | None:
        """Return the new text of a file beside the weights; None if the file is copied unchanged."""

    def _write_companions(self, stack: ExitStack) -> int | None:
        """Write the files beside the weights, and open the model card, which is written after the weights.

        Args:
            stack: the files get their names when it is closed.
        Returns:
            the card's file descriptor; None if there is no card.
        """
        goes_to = self._destination
        for source, copy in goes_to.companions:
            descriptor = stack.enter_context(writing(copy, replace=goes_to.force))
            if (text := self._rewritten(source, copy)) is None:
                copy_into(descriptor, source)
            else:
                write_all(descriptor, text, 0)
        return stack.enter_context(writing(goes_to.card, replace=goes_to.force)) if goes_to.card else None

    def _write_card(self, card: int | None, glue: Mapping[str, Any]) -> None:
        """Write the model card to its open file, if there is one; `glue` holds the blend's metadata."""
        if card is not None:
            write_all(card, make_card(glue, self._about).encode(), 0)
