"""Where a search starts: the loss over the simplex has several basins, and the uniform blend may lie in a poor one."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.seeds import generator
from glue_cli.foundation.state import State
from glue_cli.methods.domains import Simplex
from glue_cli.methods.skips import not_finite
from glue_cli.methods.steps.questions import Probes, probe
from glue_cli.results.mix import BY_LOSS, UNIFORM, name_of_expert, name_towards_expert, name_with
from glue_cli.search.account import Purse
from glue_cli.search.protocol import Objective

SHARE = 0.25  # the most that screening takes of a budget
N_MINIBATCHES = 2  # those of the steps 0 and 1
# How far a start lies from the uniform blend towards its expert. Starts nearer to the expert end in poor basins.
_TOWARDS_EXPERT = 0.5
N_FINALISTS = 4


@dataclass(frozen=True, eq=False)
class Start:
    """Where a search may start: alpha [G, K], BatchNorm statistics, and its losses.

    Attributes:
        losses: infinite where they are not finite.
        expert: the one that it lies towards; None if it lies towards no single one.
    """

    name: str
    alpha: Tensor
    statistics: Statistics
    expert: int | None = None
    losses: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Its name in the result."""
        return name_with(self.name, self.statistics)

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss)

    def state(self) -> State:
        losses = torch.tensor(self.losses, dtype=torch.float64)
        kind = {"statistics": self.statistics, "expert": self.expert}
        return {"name": self.name, "alpha": self.alpha, **kind, "losses": losses}

    @classmethod
    def of(cls, state: State) -> "Start":
        return cls(state["name"], state["alpha"], state["statistics"], state["expert"], state["losses"].tolist())


def screen(objective: Objective, purse: Purse, seed: int) -> tuple[list[Start], list[Start]]:
    """Compare the starts of every kind of statistics on the same minibatches.

    Returns:
        Those that were evaluated twice, the lowest loss first, then the rest; and apart from these the starts whose
        loss is not finite. A kind of statistics is left out if the budget has no forward for it.
    Raises:
        NumericalError: no start has a finite loss.
    """
    starts: list[Start] = []
    for number, kind in enumerate(objective.kinds, 1):
        share = SHARE * number / len(objective.kinds)
        if not starts or purse.forwards(share) >= 1:
            starts += _screen(objective.with_statistics(kind), kind, purse, seed, share)
    finite = [start for start in starts if start.is_finite]
    if not finite:
        raise not_finite("the loss of all starts", 0, starts[0].alpha)
    lost = [start for start in starts if not start.is_finite]
    return sorted(finite, key=lambda start: (-len(start.losses), start.loss)), lost


def _screen(objective: Objective, kind: Statistics, purse: Purse, seed: int, share: float) -> list[Start]:
    """Compare starts on one minibatch, and the uniform blend and the best of them on a second one.

    The starts are the uniform blend, the points half-way to each expert, and softmax(-losses) of these points. If the
    budget does not allow all experts, some are drawn. Where the loss half-way to an expert is not finite, the expert
    itself is a start.

    Args:
        share: of a budget, up to which forwards may be spent.
    """
    domain = Simplex.of(objective)
    uniform = Start(UNIFORM, domain.uniform(), kind)
    starts = [uniform]
    _look(objective, starts, 0)
    purse.warmed_up()
    if purse.forwards(share) >= 1:
        _look(objective, starts, 1)
    n_affordable = purse.forwards(share) - 1 - N_FINALISTS
    if n_affordable < 2:
        return starts
    drawn = torch.randperm(domain.n_experts, generator=generator(seed, "screening")).tolist()
    for k in sorted(drawn[: int(min(n_affordable, domain.n_experts))]):
        alpha = uniform.alpha.lerp(domain.corner(k), _TOWARDS_EXPERT)
        starts.append(Start(name_towards_expert(k), alpha, kind, expert=k))
    _look(objective, starts[1:], 0)
    lost = [start for start in starts[1:] if not start.is_finite]
    if len(starts) == domain.n_experts + 1 and not lost:
        losses = torch.tensor([start.loss for start in starts[1:]], dtype=torch.float64)
        nats = losses / objective.nat_at(losses.min().item())
        by_loss = domain.from_logits(-nats).expand(domain.shape).clone()
        starts.append(Start(BY_LOSS, by_loss, kind))
        _look(objective, starts[-1:], 0)
    experts = [start.expert for start in lost if start.expert is not None]
    experts = experts[: int(max(0, min(len(experts), purse.forwards(share) - N_FINALISTS)))]
    alone = [Start(name_of_expert(k), domain.corner(k), kind, expert=k) for k in experts]
    _look(objective, alone, 0)
    starts += alone
    starts.sort(key=lambda start: start.losses[0])
    _look(objective, [start for start in starts[:N_FINALISTS] if start is not uniform and start.is_finite], 1)
    return starts


def _look(objective: Objective, starts: list[Start], step: int) -> None:
    """Record the starts' losses on the minibatch of `step`.

    Two blends are made at a time, as in the search itself, so that it needs no more memory.
    """
    if starts:
        losses = probe(objective, Probes(torch.stack([start.alpha for start in starts]), n_at_once=2), step)
        for start, loss in zip(starts, losses.tolist(), strict=True):
            start.losses.append(loss if math.isfinite(loss) else math.inf)
