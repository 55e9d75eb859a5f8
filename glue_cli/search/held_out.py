"""Blends as they would be written, and their loss on examples that were not used to make them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.running.batchnorm import keep_own_counters, refresh_statistics, statistics_of
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.running.means import ExampleSums
from glue_cli.search.bank.matrix import ExpertBank
from glue_cli.search.blended import MakeTensors, make_nothing
from glue_cli.search.bound_models import bind, set_tensors
from glue_cli.search.criterion import Criterion

Charge = Callable[[Tensor], None]  # is called with the targets of every forward


@dataclass(frozen=True)
class Batches:
    """Batches that can be iterated over repeatedly, always the same, and their number."""

    again: Callable[[], Iterable[Batch]]
    n: int


class WrittenBlend:
    """One blend in memory, as its file will be: each tensor in the file's dtype, with its own BatchNorm statistics.

    All passes are in float32, so that experts that hardly differ can be told apart, and `glue evaluate` gives the same
    figures with `--set precision=fp32`.

    Args:
        model: the architecture, on the device; it is copied, except for tensors that do not depend on alpha.
        dtypes: the dtype in which each tensor is written, by name; float32 by default.
        make_tensors: makes the tensors that depend on alpha but are not blended.
    """

    def __init__(
        self,
        model: nn.Module,
        bank: ExpertBank,
        criterion: Criterion,
        *,
        dtypes: Mapping[str, torch.dtype],
        make_tensors: MakeTensors = make_nothing,
    ) -> None:
        self._bank, self._criterion, self._dtypes, self._make_tensors = bank, criterion, dtypes, make_tensors
        self._row = torch.empty(1, bank.n_columns, device=bank.device)
        uniform = torch.full((bank.n_groups, bank.n_experts), 1 / bank.n_experts, dtype=torch.float64)
        self._model = bind(model, bank.spans, self._row[0], make_tensors(uniform).keys()).eval()
        keep_own_counters(self._model)

    @torch.no_grad()
    def load(self, alpha: Tensor) -> None:
        """Set it to the blend for alpha [G, K]."""
        self._bank.blend(alpha[None], self._row)
        self._round()
        made = {name: self._as_written(name, tensor) for name, tensor in self._make_tensors(alpha).items()}
        set_tensors(self._model, made)

    @torch.no_grad()
    def refresh(self, batches: Iterable[Batch], charge: Charge) -> None:
        """Recompute BatchNorm's statistics."""

        def forward(model: nn.Module, batch: Batch) -> None:
            charge(batch[1])
            outputs_of(model, batch[0])

        refresh_statistics(self._model, batches, forward)
        self._round()

    @torch.no_grad()
    def judge(self, batches: Iterable[Batch], charge: Charge) -> Iterable[ExampleSums]:
        """Return the terms of the criterion, batch by batch."""
        sums = []
        for inputs, targets in batches:
            charge(targets)
            sums.append(ExampleSums.of(self._criterion.terms(outputs_of(self._model, inputs), targets), targets))
        return sums

    def statistics(self) -> dict[str, Tensor]:
        """Return BatchNorm's statistics, by their names in a state dict, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in statistics_of(self._model).items()}

    def _round(self) -> None:
        for name, span in self._bank.spans.items():
            if self._dtypes.get(name, torch.float32) != torch.float32:
                there = span.view(self._row[0])
                there.copy_(self._as_written(name, there))

    def _as_written(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtypes.get(name, torch.float32)).to(tensor.dtype)


@dataclass(frozen=True)
class Part:
    """Examples to judge blends by, and others to compute BatchNorm's statistics from; the two do not overlap."""

    judged: Batches
    refreshing: Batches


class HeldOut:
    """Judges blends as they would be written, on parts of the examples.

    With many examples there is one part: the validation data, and training data to refresh statistics from. With few,
    each fold is a part, which judges a blend whose alpha and statistics come from the other folds.
    """

    def __init__(self, blend: WrittenBlend, parts: Sequence[Part]) -> None:
        self._blend, self._parts = blend, parts
        self.n_batches = sum(part.judged.n for part in parts)

    def terms(self, alphas: Tensor, statistics: Statistics, n_batches: int | None, charge: Charge) -> Tensor:
        """Return the held-out terms of a blend, [N], float64; see `Objective.written_terms`."""
        sums: list[ExampleSums] = []
        for number, (part, n_judged) in enumerate(self._shared_out(n_batches)):
            self._blend.load(alphas if alphas.dim() == 2 else alphas[number])
            if statistics == "refreshed":
                self._blend.refresh(part.refreshing.again(), charge)
            sums += self._blend.judge(islice(part.judged.again(), n_judged), charge)
        return ExampleSums.join(sums).shares

    def n_forwards(self, statistics: Statistics, n_batches: int | None = None) -> int:
        """Return how many forwards `terms` makes."""
        parts = self._shared_out(n_batches)
        return sum(n + (part.refreshing.n if statistics == "refreshed" else 0) for part, n in parts)

    def _shared_out(self, n_batches: int | None) -> list[tuple[Part, int]]:
        """Return the parts that the first batches belong to, each with its number of these batches."""
        left, shares = self.n_batches if n_batches is None else n_batches, []
        for part in self._parts:
            if left > 0:
                shares.append((part, min(left, part.judged.n)))
                left -= part.judged.n
        return shares
