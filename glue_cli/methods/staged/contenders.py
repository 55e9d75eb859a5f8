"""The contenders in the race: each is a start, the strategy that descends from it, and its losses so far."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glue_cli.foundation.batchnorm_names import Statistics
from glue_cli.foundation.state import State, part_of, prefixed
from glue_cli.methods.staged.by_group import candidate_of
from glue_cli.methods.staged.guard import Candidate
from glue_cli.methods.staged.screening import Start
from glue_cli.methods.steps.strategy import Shrinks, Strategy
from glue_cli.results.mix import UNIFORM

MOST = 4

# Returns a strategy from a start, alpha [G, K].
MakeStrategy = Callable[[Tensor], Strategy]


@dataclass(eq=False)
class Contender:
    """Attributes: losses: of its steps; infinite for one that was skipped, as a loss was not finite."""

    start: Start
    strategy: Strategy
    losses: list[float] = field(default_factory=list)

    @property
    def score(self) -> tuple[int, float]:
        """How many of the later half of the steps were skipped, and the mean loss of the others; less is better.

        The minibatches are the same for all contenders.
        """
        later = self.losses[len(self.losses) // 2 :]
        finite = [loss for loss in later if math.isfinite(loss)]
        return len(later) - len(finite), sum(finite) / len(finite) if finite else math.inf

    def candidate(self, name: str, n_seen: int) -> Candidate:
        """Return its estimate, pulled back as far as the `n_seen` examples that it saw do not support it."""
        if isinstance(self.strategy, Shrinks):
            return candidate_of(name, self.strategy.shrunk(n_seen), self.start.statistics)
        return Candidate(name, self.strategy.alpha, self.start.statistics)

    def state(self) -> State:
        losses = torch.tensor(self.losses, dtype=torch.float64)
        return {"start": self.start.label, "losses": losses, **prefixed("strategy", self.strategy.state())}

    @classmethod
    def of(cls, state: State, starts: list[Start], make_strategy: MakeStrategy) -> "Contender":
        """Restore a contender, which began at one of the starts, from its state."""
        start = next(start for start in starts if start.label == state["start"])
        strategy = make_strategy(start.alpha)
        strategy.restore(part_of(state, "strategy"))
        return cls(start, strategy, state["losses"].tolist())


def enter(starts: list[Start], make_strategy: MakeStrategy, n_forwards: float) -> list[Contender]:
    """Return as many contenders as can race with `n_forwards`, at least one.

    Most wanted are the best start, the best one with the other kind of statistics, since kinds can only be compared by
    starts that are equally good, and the uniform blend with the first kind. The best of the others take what is left.

    Args:
        starts: the best first.
    """
    first = Contender(starts[0], make_strategy(starts[0].alpha))
    affordable = n_forwards / (first.strategy.n_rounds * first.strategy.n_forwards)
    n_contenders = max(n for n in range(1, MOST + 1) if _race_length(n) <= affordable)
    best_of_kinds = {start.statistics: start for start in reversed(starts)}
    others = [start for kind, start in best_of_kinds.items() if kind != starts[0].statistics]
    uniforms = [start for start in starts if start.name == UNIFORM and start.statistics == starts[0].statistics]
    wanted = dict.fromkeys([starts[0], *others, *uniforms, *starts])  # without repetitions
    entered = [*wanted][1:n_contenders]
    return [first, *(Contender(start, make_strategy(start.alpha)) for start in starts if start in entered)]


def first_of_each_kind(contenders: Sequence[Contender]) -> list[Contender]:
    """Return the first contender with each kind of BatchNorm statistics."""
    first: dict[Statistics, Contender] = {}
    for contender in contenders:
        first.setdefault(contender.start.statistics, contender)
    return [*first.values()]


def better_half(contenders: Sequence[Contender], winners: Sequence[Contender]) -> list[Contender]:
    """Return the first half of the contenders and the winners, or if those are all there are, the winners alone."""
    half = contenders[: (len(contenders) + 1) // 2]
    kept = [one for one in contenders if one in half or one in winners]
    return kept if len(kept) < len(contenders) else [*winners]


def _race_length(n_contenders: int) -> int:
    """Return how many times `n_rounds` steps are made, by all contenders together, until one is left."""
    return 0 if n_contenders == 1 else n_contenders + _race_length((n_contenders + 1) // 2)
