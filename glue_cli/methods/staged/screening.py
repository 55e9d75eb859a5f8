"""Where a search starts: the loss over the simplex has several basins, and the uniform blend may lie in a poor one."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.seeds import generator
from glue_cli.foundation.state import State
from glue_cli.methods.domains import Simplex
from glue_cli.methods.result import check_finite
from glue_cli.methods.steps.questions import Probes, probe
from glue_cli.results.mix import name_with
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective

SHARE = 0.25  # the most that screening takes of a budget
N_MINIBATCHES = 2  # those of the steps 0 and 1
# How far a start lies from the uniform blend towards its expert. Starts nearer to the expert end in poor basins.
_TOWARDS_EXPERT = 0.5
_N_FINALISTS = 4


@dataclass(frozen=True, eq=False)
class Start:
    """Where a search may start: alpha [G, K], BatchNorm statistics, and its losses.

    Attributes:
        expert: the one that it lies towards; None if it lies towards no single one.
    """

    name: str
    alpha: Tensor
    statistics: Statistics
    expert: int | None = None
    losses: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Its name in the account."""
        return name_with(self.name, self.statistics)

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)

    def state(self) -> State:
        losses = torch.tensor(self.losses, dtype=torch.float64)
        kind = {"statistics": self.statistics, "expert": self.expert}
        return {"name": self.name, "alpha": self.alpha, **kind, "losses": losses}

    @classmethod
    def of(cls, state: State) -> "Start":
        return cls(state["name"], state["alpha"], state["statistics"], state["expert"], state["losses"].tolist())


def screen(objective: Objective, purse: Purse, seed: int) -> list[Start]:
    """Compare the starts of every kind of statistics on the same minibatches.

    Returns:
        Those that were evaluated twice, the lowest loss first, then the rest. A kind of statistics is left out if its
        uniform blend has no finite loss, or if the budget has no forward for it.
    Raises:
        NumericalError: no start is left.
    """
    starts: list[Start] = []
    for number, kind in enumerate(objective.kinds, 1):
        share = SHARE * number / len(objective.kinds)
        if not starts or purse.forwards(share) >= 1:
            starts += _screen(objective.with_statistics(kind), kind, purse, seed, share)
    finite = [start for start in starts if math.isfinite(start.loss)]
    if not finite:
        check_finite(starts[0].loss, 0, "loss")
    return sorted(finite, key=lambda start: (-len(start.losses), start.loss))


def _screen(objective: Objective, kind: Statistics, purse: Purse, seed: int, share: float) -> list[Start]:
    """Compare starts on one minibatch, and the uniform blend and the best of them on a second one.

    The starts are the uniform blend, the points half-way to each expert, and softmax(-losses) of these points. If the
    budget does not allow all experts, some are drawn.

    Args:
        share: of a budget, up to which forwards may be spent.
    Returns:
        The starts whose loss is finite; the uniform blend alone if its own loss is not.
    """
    domain = Simplex.of(objective)
    uniform = Start("uniform", domain.uniform(), kind)
    starts = [uniform]
    _look(objective, starts, 0)
    purse.warmed_up()
    if purse.forwards(share) >= 1:
        _look(objective, starts, 1)
    if not math.isfinite(uniform.loss):
        return starts
    n_affordable = purse.forwards(share) - 1 - _N_FINALISTS
    if n_affordable < 2:
        return starts
    drawn = torch.randperm(domain.n_experts, generator=generator(seed, "screening")).tolist()
    for k in sorted(drawn[: int(min(n_affordable, domain.n_experts))]):
        alpha = uniform.alpha.lerp(domain.corner(k), _TOWARDS_EXPERT)
        starts.append(Start(f"towards expert {k}", alpha, kind, expert=k))
    starts[1:] = _look(objective, starts[1:], 0)
    if len(starts) == domain.n_experts + 1:
        losses = torch.tensor([start.loss for start in starts[1:]], dtype=torch.float64)
        by_loss = domain.from_logits(-losses).expand(domain.shape).clone()
        starts += _look(objective, [Start("by loss", by_loss, kind)], 0)
    starts.sort(key=lambda start: start.losses[0])
    finalists, rest = starts[:_N_FINALISTS], starts[_N_FINALISTS:]
    looked_at = [start for start in finalists if start is uniform]
    looked_at += _look(objective, [start for start in finalists if start is not uniform], 1)
    return looked_at + rest


def _look(objective: Objective, starts: list[Start], step: int) -> list[Start]:
    """Record the starts' losses on the minibatch of `step`; return the starts whose loss is finite.

    Two blends are made at a time, as in the search itself, so that it needs no more memory.
    """
    if not starts:
        return []
    alphas = torch.stack([start.alpha for start in starts])
    for start, loss in zip(starts, probe(objective, Probes(alphas, n_at_once=2), step).tolist(), strict=True):
        start.losses.append(loss)
    return [start for start in starts if math.isfinite(start.loss)]
