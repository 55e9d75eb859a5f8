"""The experts of a mix, whole checkpoints or adapters: as a model, as a search's blends, and as the blend on disk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glue_cli.blend.adapters.adapted_base import AdaptedBase
from glue_cli.blend.adapters.mixing import concatenate, expert_tensors, mixed_tensor, write_merged
from glue_cli.blend.heads import AlignedHead
from glue_cli.blend.in_memory import blend_tensors
from glue_cli.blend.rows import AlignedRows
from glue_cli.blend.to_files import blend_files
from glue_cli.checkpoints.configuration import Changes
from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import Checkpoint, TensorEntry
from glue_cli.checkpoints.naming import Naming
from glue_cli.checkpoints.parts import without_parts
from glue_cli.checkpoints.tokenizer_files import with_tokens
from glue_cli.foundation.output_files import copy_into, write_all, writing
from glue_cli.foundation.run import Run
from glue_cli.plans.mix import MixPlan
from glue_cli.plans.mix_records import Adapters, Tensors, Writing
from glue_cli.results.card import About, make_card
from glue_cli.running.device import Compute, find_device, likes_channels_last
from glue_cli.search.bank.load import bank_of_tensors, choose_bank, load_bank
from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.protocol import BLENDED_STATISTICS, BatchNormMode, Blends
from glue_cli.workflows.save import configured_beside

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec

Describe = Callable[[Sequence[str | None]], dict[str, Any]]  # the experts' sha256 [K] -> glue's metadata


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
    ) -> Blends:
        """Return what yields the outputs of blends, in float32 until another precision is chosen.

        Args:
            seed: for the random state of the forwards.
            n_blends: how many blends are used at once.
        Raises:
            CheckpointError: the experts do not fit the model, or one has NaN or infinity.
        """
        model = self._build(spec, weightless=True)
        compute = Compute(find_device(run.device), channels_last=likes_channels_last(model))
        bank = self._bank(compute, n_blends, run)
        self._fill_but(model, bank.spans.keys(), spec)
        return ResidentBlends(
            compute.to_device(model), bank, compute, seed=seed, batchnorm=batchnorm, make_tensors=self._make_in_memory
        )

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

    def _fill_but(self, model: nn.Module, blended: Collection[str], spec: "Spec") -> None:
        """Give a weightless model the tensors that are not blended; those that are made get any values."""
        from glue_cli.models.weightless import fill, without_values

        n_groups, n_experts = self._n_coefficients
        first = torch.eye(n_experts, dtype=torch.float64)[:1].expand(n_groups, n_experts)
        sources = {name: source for name, source in self._naming.distinct() if name not in blended}
        tensors = self._tensors(first.tolist(), [part for source in sources.values() for part in source.names])
        fill(model, Naming(sources, ()).in_memory({**tensors, **self._make(first)}))
        if fresh := without_values(model) - {*self._naming.sources}:  # what the experts need not have
            values = self._build(spec).state_dict()
            fill(model, {name: values[name] for name in fresh})

    @abstractmethod
    def _bank(self, compute: Compute, n_blends: int, run: Run) -> ExpertBank:
        """Return a bank of the tensors that are blended."""

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


class WholeExperts(Experts):
    """Whole checkpoints.

    Args:
        bank: where a search keeps them, a name of `plans.mix_records.BANKS`.
        seed: for a head that is initialised anew.
    """

    def __init__(
        self,
        experts: Sequence[Checkpoint],
        tensors: Tensors,
        destination: Destination,
        writing: Writing,
        about: About,
        *,
        bank: str,
        seed: int,
    ) -> None:
        self._about = about
        self._experts, self._rules = experts, tensors
        self._destination, self._writing, self._bank_kind = destination, writing, bank
        self._searched = [without_parts(expert, destination.parts) for expert in experts]
        described = tensors.recipe.describe(self._searched)
        entries = {name: TensorEntry(name, dtype, shape, 0, 0) for name, dtype, shape in described}
        self.header = replace(experts[0], entries=entries)
        self._head = None
        if head := tensors.head:
            self._head = AlignedHead(experts, head.names, head.known, head.classes, seed=seed)
        self._rows = None
        if (tokens := tensors.tokens) and tokens.names:
            self._rows = AlignedRows(experts, tokens, tensors.recipe)

    @property
    def _n_coefficients(self) -> tuple[int, int]:
        return len(self._rules.recipe.groups), len(self._experts)

    def _bank(self, compute: Compute, n_blends: int, run: Run) -> ExpertBank:
        if self._rows:
            self._rows.hold()
        recipe, device = self._rules.recipe, compute.device
        kind = choose_bank(
            self._bank_kind,
            self._searched,
            recipe,
            device=device,
            n_blends=n_blends,
            progress=run.progress,
            naming=self._naming,
        )
        return load_bank(
            self._searched,
            device=device,
            channels_last=compute.channels_last,
            recipe=recipe,
            kind=kind,
            naming=self._naming,
        )

    def write(
        self,
        alphas: Tensor,
        made: dict[str, Tensor],
        describe: Describe,
        hashes: Sequence[StreamedHash],
        run: Run,
    ) -> Sequence[str | None]:
        recipe = self._rules.recipe
        on_disk = self._naming.on_disk(made) if made else {}
        made = {name: tensor for name, tensor in on_disk.items() if recipe.is_blended(name)}
        shapes = {name: tuple(tensor.shape) for name, tensor in made.items()}
        with ExitStack() as stack:
            stack.enter_context(self._destination.claimed())
            card = self._write_companions(stack)
            digests = blend_files(
                self._experts,
                alphas.tolist(),
                replace(self._destination, companions=()),
                describe,
                recipe=replace(recipe, made={**recipe.made, **shapes}),
                made={**made, **self._make(alphas)},
                memory_bytes=self._writing.memory_bytes,
                hashes=hashes,
                progress=run.progress,
            )
            self._write_card(card, describe(digests))
        return digests

    def _rewritten(self, source: Path, copy: Path) -> bytes | None:
        tokens = self._rules.tokens
        if source.name != "config.json":
            return with_tokens(source, tokens.new) if tokens and tokens.new else None
        resized = tokens.resized(self._experts) if tokens else None
        return configured_beside(copy, source, self._destination, Changes(self._rules.head_classes, resized))

    def _make(self, alphas: Tensor) -> dict[str, Tensor]:
        head = self._rules.head
        made = self._head.blend(alphas[head.group]) if self._head and head else {}
        return {**made, **self._rows.blend(alphas)} if self._rows else made

    def _tensors(self, alphas: Sequence[Sequence[float]], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        return dict(blend_tensors(self._searched, alphas, self._rules.recipe, names))


class AdapterExperts(Experts):
    """Low-rank adapters of one base."""

    def __init__(self, adapters: Adapters, destination: Destination, about: About) -> None:
        self._adapters, self._destination, self._about = adapters, destination, about
        if adapted := adapters.adapted:
            entries = {name: TensorEntry(name, dtype, shape, 0, 0) for name, dtype, shape in adapted.merged}
            self.header = replace(adapted.base, entries=entries)

    @property
    def _adapted(self) -> AdaptedBase:
        assert self._adapters.adapted  # given if the plan needs a model, or merges
        return self._adapters.adapted

    @property
    def _n_coefficients(self) -> tuple[int, int]:
        return 1, len(self._adapters.adapters)

    def _bank(self, compute: Compute, n_blends: int, run: Run) -> ExpertBank:
        adapted = self._adapted
        experts = (expert_tensors(adapted, k, self._naming) for k in range(len(adapted.adapters)))
        return bank_of_tensors(experts, n_experts=len(adapted.adapters), device=compute.device)

    def write(
        self,
        alphas: Tensor,
        made: dict[str, Tensor],
        describe: Describe,
        hashes: Sequence[StreamedHash],
        run: Run,
    ) -> Sequence[str | None]:
        adapters, destination = self._adapters.adapters, self._destination
        digests = [streamed.finish() for streamed in hashes] if hashes else [None] * len(adapters)
        if self._adapters.merges:
            with ExitStack() as stack:
                stack.enter_context(destination.claimed())
                self._write_card(self._write_companions(stack), describe(digests))
                write_merged(
                    destination.files[0],
                    self._adapted,
                    alphas[0].tolist(),
                    describe(digests),
                    replace=destination.force,
                )
            for stale in destination.stale_files():
                stale.unlink()
        else:
            with ExitStack() as stack:
                stack.enter_context(destination.claimed())
                self._write_card(self._write_companions(stack), describe(digests))
                concatenate(
                    adapters, alphas[0].tolist(), destination.result, describe(digests), replace=destination.force
                )
        return digests

    def _rewritten(self, source: Path, copy: Path) -> bytes | None:
        return configured_beside(copy, source, self._destination, self._adapters.changes)

    def _tensors(self, alphas: Sequence[Sequence[float]], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        adapted = self._adapted
        wanted = [name for name, _, _ in adapted.merged] if names is None else names
        return {name: mixed_tensor(adapted, alphas[0], name) for name in wanted}


def gather_experts(plan: MixPlan) -> Experts:
    """Return the experts of a plan."""
    if plan.adapters:
        return AdapterExperts(plan.adapters, plan.destination, plan.about)
    return WholeExperts(
        plan.experts,
        plan.tensors,
        plan.destination,
        plan.writing,
        plan.about,
        bank=plan.search.bank,
        seed=plan.seed,
    )
