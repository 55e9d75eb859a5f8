"""Adapters as the experts of a mix."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from glue_cli.blend.adapters.adapted_base import AdaptedBase
from glue_cli.blend.adapters.mixing import concatenate, expert_tensors, mixed_tensor, write_merged
from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import TensorEntry
from glue_cli.foundation.errors import ResourceError, UsageError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.foundation.units import mebibytes, size
from glue_cli.plans.mix_records import Adapters, Search
from glue_cli.results.card import About
from glue_cli.running.device import Compute
from glue_cli.search.adapters.fit import find_obstacle, fit_adapters, padded_otherwise
from glue_cli.search.adapters.memory import factor_bytes, n_changed_columns
from glue_cli.search.bank.load import bank_of_tensors
from glue_cli.search.points import bytes_at_once
from glue_cli.search.protocol import Blends
from glue_cli.workflows.mix.experts_interface import Describe, Experts, How
from glue_cli.workflows.save import configured_beside

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec


class AdapterExperts(Experts):
    """Low-rank adapters of one base.

    Args:
        search: how a search keeps them, a name of `plans.mix_records.ADAPTER_BANKS`, and what memory it may take.
    """

    def __init__(self, adapters: Adapters, destination: Destination, about: About, *, search: Search) -> None:
        self._adapters, self._destination, self._about = adapters, destination, about
        self._kept_as, self._memory_bytes = search.bank, search.memory_bytes
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

    def _provide(
        self, model: nn.Module, compute: Compute, spec: "Spec", how: How, n_blends: int, needs_gradient: bool, run: Run
    ) -> Blends:
        if not self._adapters.merges and (paths := padded_otherwise(model, self._adapted, self._naming)):
            text = f"'{paths[0]}' does not pad with zeros, and PEFT's update of it does until it is merged"
            run.progress(Noted(f"{text}: the search measures merged updates, as --base writes them", warning=True))
        if self._adapted.quantised_by:
            return self._beside_quantised(model, compute, spec, how, needs_gradient, run)
        if self._kept_as != "dense":
            obstacle = find_obstacle(model, self._adapted, self._naming)
            if obstacle is None:
                self._check_memory("factors", factor_bytes(self._adapted))
                run.progress(Noted("adapters in factors, beside one copy of their base"))
                self._fill_fresh(model, spec)
                return fit_adapters(model, self._adapted, self._naming, compute, seed=how.seed)
            if self._kept_as == "factors":
                raise UsageError(f"--bank factors: {obstacle}", hint="--bank dense, which takes more memory")
            run.progress(Noted(f"adapters as whole tensors, not in factors: {obstacle}"))
        adapted = self._adapted
        self._check_memory("dense", self._dense_bytes(n_blends))
        experts = (expert_tensors(adapted, k, self._naming) for k in range(len(adapted.adapters)))
        bank = bank_of_tensors(experts, n_experts=len(adapted.adapters), device=compute.device)
        return self._resident(model, compute, spec, how, bank)

    def _dense_bytes(self, n_blends: int) -> int:
        """Return the bytes of all adapters' whole tensors, and of the blends of these that a search has at once."""
        n_experts, n_columns = len(self._adapted.adapters), n_changed_columns(self._adapted)
        return 4 * n_experts * n_columns + bytes_at_once(n_blends, 1 + n_experts, n_columns)

    def _check_memory(self, kept_as: str, n_bytes: int) -> None:
        """Check that adapters may take so much memory beyond their base.

        Raises:
            ResourceError: they may not.
        """
        if self._memory_bytes is not None and n_bytes > self._memory_bytes:
            of_factors = factor_bytes(self._adapted)
            is_smaller = kept_as == self._kept_as == "dense" and of_factors < n_bytes
            raise ResourceError(
                f"--bank {kept_as} takes {size(n_bytes)}, more than the {size(self._memory_bytes)} of --memory",
                hint=f"--memory {mebibytes(n_bytes)}"
                + (f", or --bank factors, which takes {size(of_factors)}" if is_smaller else ""),
            )

    def _beside_quantised(
        self, model: nn.Module, compute: Compute, spec: "Spec", how: How, needs_gradient: bool, run: Run
    ) -> Blends:
        from glue_cli.models.libraries.transformers_quantised import find_layer_without_gradient

        library, loaded = self._adapted.quantised_by, self._load_quantised(model, compute, spec)
        barrier = find_layer_without_gradient(loaded)
        if needs_gradient and barrier:
            text = f"no gradient passes '{barrier}', which {library} computes on this device"
            raise UsageError(text, hint="--method spsa, which needs none")
        self._check_memory("factors", factor_bytes(self._adapted))
        run.progress(Noted(f"adapters in factors, beside their base as {library} computes with it"))
        blends = fit_adapters(loaded, self._adapted, self._naming, compute, seed=how.seed)
        blends.has_gradient = not barrier
        return blends

    def _load_quantised(self, model: nn.Module, compute: Compute, spec: "Spec") -> nn.Module:
        """Return the quantised base as its library loads it, if adapters can be beside it in factors.

        Args:
            model: the model without its weights.
        """
        obstacle = find_obstacle(model, self._adapted, self._naming)
        library, _, name = spec.model.arch.partition(":")
        if library != "transformers":
            obstacle = f"model.arch is '{spec.model.arch}', and transformers has to load it"
        if self._kept_as == "dense":
            obstacle = "--bank dense needs its weights"
        if obstacle:
            message = f"the base '{self._adapted.base.path}' is quantised, and {obstacle}"
            raise UsageError(message, hint="name the base that it was made from in model.args.path")
        from glue_cli.models.libraries.transformers_quantised import load_quantised

        plain = self._adapted.adapters[0].plain.entries
        return load_quantised(name, spec.model_args, spec.path("."), compute.device, need_not_have=plain)

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
        alpha, metadata = alphas[0].tolist(), describe(digests)
        with ExitStack() as stack:
            stack.enter_context(destination.claimed())
            self._write_card(self._write_companions(stack), metadata)
            if self._adapters.merges:
                write_merged(destination.files[0], self._adapted, alpha, metadata, replace=destination.force)
            else:
                concatenate(adapters, alpha, destination.result, metadata, replace=destination.force)
        if self._adapters.merges:
            for stale in destination.stale_files():
                stale.unlink()
        return digests

    def _rewritten(self, source: Path, copy: Path) -> bytes | None:
        return configured_beside(copy, source, self._destination, self._adapters.changes)

    def _check_tied(self, model: nn.Module) -> None:
        from glue_cli.models.tied import check_adapted_alike  # a plain blend does not need it

        if not self._adapted.keeps_tied:
            check_adapted_alike(model, self._naming, self._adapted.changed)

    def _tensors(self, alphas: Sequence[Sequence[float]], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        adapted = self._adapted
        wanted = [name for name, _, _ in adapted.merged] if names is None else names
        return {name: mixed_tensor(adapted, alphas[0], name) for name in wanted}
