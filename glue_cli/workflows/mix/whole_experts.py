"""Whole checkpoints as the experts of a mix."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glue_cli.blend.heads import AlignedHead
from glue_cli.blend.in_memory import blend_tensors
from glue_cli.blend.rows import AlignedRows
from glue_cli.blend.to_files import blend_files
from glue_cli.checkpoints.configuration import Changes
from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import Checkpoint, TensorEntry
from glue_cli.checkpoints.parts import without_parts
from glue_cli.checkpoints.tokenizer_files import with_tokens
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.ranks import Ranks
from glue_cli.foundation.run import Run
from glue_cli.plans.mix_records import Search, Tensors, Writing
from glue_cli.results.card import About
from glue_cli.running.device import Compute
from glue_cli.search.bank.falling_back import in_turn, load_first
from glue_cli.search.bank.kinds import BankKind
from glue_cli.search.bank.layout import blended_entries
from glue_cli.search.bank.load import check_variances, choose_bank, load_bank, usable_memory
from glue_cli.search.bank.matrix import lacks_compiler
from glue_cli.search.bank.renamed_experts import rename_experts
from glue_cli.search.points import uniform_alpha
from glue_cli.search.protocol import Blends
from glue_cli.search.streamed.blends import StreamedBlends
from glue_cli.search.streamed.engine import Engine
from glue_cli.workflows.mix.experts_interface import Describe, Experts, How
from glue_cli.workflows.save import configured_beside

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec


class WholeExperts(Experts):
    """Whole checkpoints.

    Args:
        search: where a search keeps them, and what memory it may take.
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
        search: Search,
        seed: int,
    ) -> None:
        self._about = about
        self._experts, self._rules = experts, tensors
        self._destination, self._writing, self._search = destination, writing, search
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

    def _provide(
        self, model: nn.Module, compute: Compute, spec: "Spec", how: How, n_blends: int, needs_gradient: bool, run: Run
    ) -> Blends:
        if self._rows:
            self._rows.hold()
        recipe, device = self._rules.recipe, compute.device
        ranks = run.ranks
        n_sharing = ranks.place.n_sharing(device)  # each process has blends of its own
        kind: BankKind = ranks.from_first(
            lambda: choose_bank(
                self._search.bank,
                self._searched,
                recipe,
                device=device,
                n_blends=n_blends * n_sharing,
                progress=run.progress,
                naming=self._naming,
                memory_bytes=self._search.memory_bytes,
                needs_gradient=needs_gradient,
                place=ranks.place,
            )
        )

        def load(kind: BankKind) -> Blends:
            if kind in ("blocks", "streamed", "sharded"):
                return self._by_block(model, compute, spec, how, run, kind)
            bank = load_bank(
                self._searched,
                device=device,
                channels_last=compute.channels_last,
                recipe=recipe,
                kind=kind,
                naming=self._naming,
                ranks=ranks,
            )
            return self._resident(model, compute, spec, how, bank)

        kinds = [kind]
        if self._search.bank == "auto":
            kinds = in_turn(kind, needs_gradient=needs_gradient, n_processes=ranks.size)
        return load_first(kinds, load, run.progress, ranks)

    def _by_block(
        self, model: nn.Module, compute: Compute, spec: "Spec", how: How, run: Run, kind: BankKind
    ) -> Blends:
        recipe, ranks = self._rules.recipe, run.ranks
        check_variances(self._searched, recipe)
        experts = rename_experts(self._searched, recipe, self._naming)
        self._fill_but(model, {entry.name for entry in blended_entries(experts.headers[0], experts.recipe)}, spec)
        made = how.make_tensors(uniform_alpha(*self._n_coefficients))
        model = compute.to_device(model).eval().requires_grad_(False)
        engine = Engine(
            model,
            experts,
            made.keys(),
            compute.device,
            n_groups=len(recipe.groups),
            channels_last=compute.channels_last,
            memory_bytes=self._usable_by_each(compute.device, ranks),
            is_held=kind == "blocks",
            shared_by=ranks if kind == "sharded" else None,
        )
        engine.open()
        if lacks_compiler(engine.n_columns, compute.device):
            run.progress(Noted("numba, which is not installed, makes blends faster: pip install 'glue-cli[fast]'"))
        return StreamedBlends(
            model, engine, compute, seed=how.seed, batchnorm=how.batchnorm, make_tensors=how.make_tensors
        )

    def _usable_by_each(self, device: torch.device, ranks: Ranks) -> int:
        """Return how many bytes every process of the job may take, the same for all."""
        n_sharing = ranks.place.n_sharing(device)
        own = self._search.memory_bytes or usable_memory(device, by_block=True) // n_sharing
        return min(int(found) for found in ranks.gather([torch.tensor(own)]))

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

    def _check_tied(self, model: nn.Module) -> None:
        from glue_cli.models.tied import check_tied  # a plain blend does not need it

        for expert in self._searched:
            check_tied(model, self._naming, expert)

    def _make(self, alphas: Tensor) -> dict[str, Tensor]:
        head = self._rules.head
        made = self._head.blend(alphas[head.group]) if self._head and head else {}
        return {**made, **self._rows.blend(alphas)} if self._rows else made

    def _tensors(self, alphas: Sequence[Sequence[float]], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        return dict(blend_tensors(self._searched, alphas, self._rules.recipe, names))
