"""`glue.mix/1`: the result that `glue mix` writes, the terminal shows and a report reads."""

from dataclasses import dataclass, field
from typing import Any

from glue_cli.results.record import WithFigures, empty_where_unknown, spread, where_known
from glue_cli.spec.budget import in_forwards
from glue_cli.spec.goal import Goal, goal_named

# The names of the blends that a search compares.
END, UNIFORM, BY_LOSS, RUNNER_UP, ONE_ALPHA = "end", "uniform", "by loss", "runner-up", "one alpha"


def name_with(name: str, statistics: str) -> str:
    """Return the name of a blend with these statistics of BatchNorm; averaged ones are not mentioned."""
    return name if statistics == "averaged" else f"{name}, {statistics}"


def name_of_expert(k: int) -> str:
    """Return the name, in a search, of expert k alone."""
    return f"expert {k}"


def name_towards_expert(k: int) -> str:
    """Return the name, in a search, of the blend half-way between the uniform blend and expert k."""
    return f"towards {name_of_expert(k)}"


@dataclass(frozen=True, kw_only=True)
class BlendedExpert:
    """An expert of a blend.

    Attributes:
        examples: the number of examples that it was trained on.
        weights: the name of the blended set of weights if its file has several.
    """

    path: str
    sha256: str | None = None
    examples: int | None = None
    weights: str | None = where_known()


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Losses on the target's validation data, of the blend and of the uniform blend."""

    val: float | None = None
    val_uniform: float | None = None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The objective of a search, if it is not the loss, and its validation figures; higher ones are better."""

    name: str
    val: float | None = None
    val_uniform: float | None = None


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The numbers of passes over minibatches and of examples in them, and the time that they took.

    Trials before alpha is chosen are not counted: of the fit of model and data, of precisions, and of two blends.
    """

    forwards: int = 0
    validation_forwards: int = 0
    backwards: int = 0
    examples: int = 0
    wall_s: float | None = None

    @property
    def in_forwards(self) -> int:
        """All passes, counted in forwards."""
        return in_forwards(self.forwards, self.backwards)

    def plus(self, other: "Passes") -> "Passes":
        """Return two accounts as one."""
        return Passes(
            forwards=self.forwards + other.forwards,
            validation_forwards=self.validation_forwards + other.validation_forwards,
            backwards=self.backwards + other.backwards,
            examples=self.examples + other.examples,
            wall_s=(self.wall_s or 0) + (other.wall_s or 0),
        )


@dataclass(frozen=True, kw_only=True)
class MixCost(Passes):
    """The cost of a mix; `peak_bytes` is the GPU's peak memory, or without a GPU the whole process's."""

    peak_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class StageLosses:
    """The minimised figure before and after a stage, on the same data; None if it is not known."""

    loss_before: float | None
    loss_after: float | None


@dataclass(frozen=True, kw_only=True)
class Stage(WithFigures):
    """A stage of a search: screen, race, descend, groups, guard, write or explain."""

    stage: str
    forwards: int
    losses: StageLosses | None = spread(lambda: None)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A simple blend that the end of a search is compared with: its loss, and its loss minus the end's."""

    name: str
    loss: float | None
    difference: float | None
    standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The comparison of the end of a search with simple blends, on the same held-out terms of the loss.

    Attributes:
        loss: that of the blend that was returned, with its standard_error.
    """

    terms: int
    end_loss: float | None
    rivals: list[Rival]
    loss: float | None = None
    standard_error: float | None = None

    @property
    def has_compared(self) -> bool:
        """Whether blends could be compared: a single term has no standard error."""
        return bool(self.rivals) and self.terms > 1


@dataclass(frozen=True, kw_only=True)
class StagedSearch:
    """How a staged search found its alpha.

    Attributes:
        start: the name of the blend from which it descended.
        starts: the losses of all blends that it could have started from, by name.
        returned: the name of the blend that the guard chose; `END` is the end of the search.
    """

    start: str
    starts: dict[str, float]
    stages: list[Stage]
    returned: str
    guard: Guard


@dataclass(frozen=True, kw_only=True)
class GreedySearch:
    """The numbers of a greedy soup's experts in the order in which they were added, and the loss after each."""

    ingredients: list[int]
    losses: list[float]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """What a search has gone on without, as a loss was not finite.

    Attributes:
        steps: how many steps were not made.
        blends: the names of the starts and experts that were left out.
    """

    steps: int
    blends: list[str]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The loss of a blend without one expert, and that loss minus the whole blend's."""

    loss: float | None
    difference: float | None
    standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class MixResult:
    """`glue.mix/1`.

    Attributes:
        alpha: the coefficients, the mean over the groups if there are several.
        groups: each group's own coefficients, if there are several that differ or were asked for.
        statistics: averaged, or refreshed on the target's data: BatchNorm's, if there was a choice between them.
        loss: validation losses of a search, or of the blend with the statistics that proxy has compared; None if
            nothing was measured, or a search had another objective.
        cost: the cost of everything.
        afterwards: the part of the cost after alpha was chosen, for explaining it and refreshing BatchNorm.
        steps: the number of steps of the search.
        stopped: why the search ended.
        skipped: what a search has gone on without, if there was anything.
        left_out: one entry per expert, if an explanation was asked for.
        before_refresh: the goal's figures during the search, before BatchNorm's statistics were recomputed.
        like: the blend that this one repeats.
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
    statistics: str | None = where_known()
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
    skipped: Skipped | None = where_known()
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
        """The goal of the search; the loss, if no other objective was given."""
        return goal_named(self.objective.name if self.objective else "loss")

    @property
    def figures(self) -> Losses | Objective:
        """The goal's figures for people, of the blend and of the uniform blend."""
        return self.objective or self.loss or Losses()

    @property
    def uniform_mean(self) -> float | None:
        """The mean of the minimised terms for the uniform blend; None if the result does not have it."""
        figure = self.figures.val_uniform
        return None if figure is None else self.goal.figure(figure)  # `figure` is its own inverse

    @property
    def cost_of_choice(self) -> MixCost:
        """The cost of choosing alpha, without the cost of anything after that."""
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
