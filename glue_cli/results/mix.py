"""`glue.mix/1`: what `glue mix` writes, the terminal shows, and a report reads."""

from dataclasses import dataclass, field
from typing import Any

from glue_cli.results.record import WithFigures, empty_where_unknown, spread, where_known
from glue_cli.spec.goal import Goal, goal_named

# What a search calls the blends that it looks at.
END, UNIFORM, BY_LOSS, RUNNER_UP = "end", "uniform", "by loss", "runner-up"


def name_of_expert(k: int) -> str:
    """Return what a search calls expert k alone."""
    return f"expert {k}"


def name_towards_expert(k: int) -> str:
    """Return what a search calls the blend half-way from the uniform one to expert k."""
    return f"towards {name_of_expert(k)}"


@dataclass(frozen=True, kw_only=True)
class BlendedExpert:
    """An expert.

    Attributes:
        examples: the number that it was trained on.
        weights: which of several sets of weights in its file was blended.
    """

    path: str
    sha256: str | None = None
    examples: int | None = None
    weights: str | None = where_known()


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses on the target's validation data: of the blend, and of the uniform blend."""

    val: float | None = None
    val_uniform: float | None = None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What was searched for in place of the loss, and its figures, of which more is better."""

    name: str
    val: float | None = None
    val_uniform: float | None = None


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes over minibatches, the examples in them, and how long they took."""

    forwards: int = 0
    validation_forwards: int = 0
    backwards: int = 0
    examples: int = 0
    wall_s: float | None = None

    @property
    def budget(self) -> int:
        """All passes in forwards: a backward takes about as long as two."""
        return self.forwards + 2 * self.backwards


@dataclass(frozen=True, kw_only=True)
class MixCost(Passes):
    """What a mix has spent; `peak_bytes` of the GPU, or without one of the whole process."""

    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class StageLosses:
    """What was minimised before and after a stage, on the same data; None where that is not known."""

    loss_before: float | None
    loss_after: float | None


@dataclass(frozen=True, kw_only=True)
class Stage(WithFigures):
    """A stage of a search: screen, race, descend, guard or explain."""

    stage: str
    forwards: int
    losses: StageLosses | None = spread(lambda: None)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A plain blend beside the end of a search: its loss, and by how much that is more than the end's."""

    name: str
    loss: float | None
    difference: float | None
    standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class Guard:
    """How the end of a search compares with plain blends on the same held-out terms."""

    terms: int
    end_loss: float | None
    rivals: list[Rival]

    @property
    def has_compared(self) -> bool:
        """Whether it could tell blends apart: a single term has no standard error."""
        return bool(self.rivals) and self.terms > 1


@dataclass(frozen=True, kw_only=True)
class StagedSearch:
    """How a staged search came by its alpha.

    Attributes:
        start: the name of the blend that it went down from; starts: the losses of all, by name.
        returned: the name of the blend that the guard chose, `END` for what was searched.
    """

    start: str
    starts: dict[str, float]
    stages: list[Stage]
    returned: str
    guard: Guard


@dataclass(frozen=True, kw_only=True)
class GreedySearch:
    """The experts of a greedy soup by number, in the order in which they were taken, and the loss after each."""

    ingredients: list[int]
    losses: list[float]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The loss of a blend without one expert, and by how much that is more than the whole blend's."""

    loss: float | None
    difference: float | None
    standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class MixResult:
    """`glue.mix/1`.

    Attributes:
        alpha: the mean over the groups; groups: each group's own, where there are several.
        loss: validation losses of a search; None where there was none, or it had another objective.
        cost: of everything; afterwards: how much of that came after alpha was chosen, to explain and to refresh.
        steps: those of the search, and stopped: what ended it.
        left_out: an explanation, an entry an expert.
        before_refresh: what the search saw of its goal, before BatchNorm's statistics were taken anew.
        like: the blend that this one is again.
    """

    schema: str = field(default="glue.mix/1", init=False)
    method: str
    alpha: list[float]
    groups: dict[str, list[float]] | None = where_known()
    experts: list[BlendedExpert]
    output: str
    loss: Losses | None = empty_where_unknown()
    cost: MixCost
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    glue: str | None = None
    model: dict[str, Any] | None = where_known()
    data: dict[str, Any] | None = where_known()
    val_accuracies: list[float] | None = where_known()
    steps: int | None = where_known()
    stopped: str | None = where_known()
    precision: str | None = where_known()
    threads: int | None = where_known()
    objective: Objective | None = where_known()
    search: StagedSearch | GreedySearch | None = where_known()
    left_out: list[LeftOut] | None = where_known()
    before_refresh: Losses | None = where_known()
    afterwards: Passes | None = where_known()
    like: str | None = where_known()

    def __post_init__(self) -> None:
        if not self.alpha:
            raise ValueError("alpha has no coefficients")
        if len(self.alpha) != len(self.experts):
            raise ValueError(f"{len(self.alpha)} coefficients for {len(self.experts)} experts")

    @property
    def goal(self) -> Goal:
        """What a search was for."""
        return goal_named(self.objective.name if self.objective else "loss")

    @property
    def figures(self) -> Losses | Objective:
        """What people read of a search's goal: of the blend, and of the uniform one."""
        return self.objective or self.loss or Losses()

    @property
    def uniform_mean(self) -> float | None:
        """The mean of the goal's terms that a search minimises, of the uniform blend; None where it is not told."""
        figure = self.figures.val_uniform
        return None if figure is None else self.goal.figure(figure)  # which is its own inverse

    @property
    def cost_of_choice(self) -> MixCost:
        """What the choice of alpha alone took."""
        after = self.afterwards or Passes()
        wall_s = self.cost.wall_s
        return MixCost(
            forwards=self.cost.forwards - after.forwards,
            validation_forwards=self.cost.validation_forwards - after.validation_forwards,
            backwards=self.cost.backwards - after.backwards,
            examples=self.cost.examples - after.examples,
            wall_s=None if wall_s is None else wall_s - (after.wall_s or 0),
            peak_bytes=self.cost.peak_bytes,
        )
