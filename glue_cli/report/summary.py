"""The summary of a row's repetitions: means and spreads over the seeds, and differences between methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glue_cli.report.sort import Repetition, Trial, styles_by_label
from glue_cli.report.statistics import Measures, Point, Series, Stat, measure, stat
from glue_cli.report.styles import Style, base_of
from glue_cli.results.evaluate import EvaluatedCheckpoint

BASELINES = ("data-size", "proxy", "fullgrad")
GLUE = "spsa"


@dataclass(frozen=True)
class Merit:
    """The figure by which methods are compared; it is shown times `scale`, in `unit`, with `digits` decimals."""

    split: str
    figure: str
    name: str
    unit: str
    scale: float
    digits: int

    @property
    def key(self) -> str:
        return f"{self.split}_{self.figure}"


MERITS = (
    Merit("test", "accuracy", "test accuracy", "%", 100.0, 1),
    Merit("val", "accuracy", "validation accuracy", "%", 100.0, 1),
    Merit("test", "r2", "test R²", "", 1.0, 3),
    Merit("val", "r2", "validation R²", "", 1.0, 3),
)


@dataclass(frozen=True)
class MethodSummary:
    """One method of a row, over the seeds.

    Attributes:
        method: how alpha was chosen; the label if that is not known.
        seeds: the seeds with known figures of merit.
        merit: its figure of merit.
        against: by baseline, its figure of merit minus the baseline's, over the seeds that both have.
        cost: the cost of choosing alpha, by the keys of `cost` in `glue.mix/1` and `budget`.
        objective: the objective of the search, such as `loss` or `accuracy`; None without a search.
        search: the validation loss against the budget spent, in forwards; 1 - accuracy if that is the objective.
    """

    label: str
    method: str
    style: Style
    seeds: list[int | None]
    merit: Measures
    against: dict[str, Measures]
    cost: dict[str, Stat]
    objective: str | None
    search: list[Point]


@dataclass(frozen=True)
class ExpertSummary:
    """One expert of a row, over the repetitions.

    Attributes:
        merit: its figure of merit, one value per repetition; None if it is not known.
    """

    name: str
    merit: list[float | None]


@dataclass(frozen=True)
class RowSummary:
    """One row of the experiment, over its repetitions.

    Attributes:
        seeds: one per repetition; None if it is not known.
        merit: the figure by which methods are compared; None if no file has one.
        notes: what a reader has to know to understand the figures.
    """

    row: str
    seeds: list[int | None]
    merit: Merit | None
    experts: list[ExpertSummary]
    methods: list[MethodSummary]
    notes: list[str]


def summarise(row: str, repetitions: Sequence[Repetition]) -> RowSummary:
    """Return the summary of a row's repetitions."""
    merit = _find_merit(repetitions)
    styles = styles_by_label(repetitions)
    series = {label: _series_of(label, repetitions, merit) for label in styles}
    methods = []
    for label, style in styles.items():
        trials = [repetition.trials[label] for repetition in repetitions if label in repetition.trials]
        methods.append(
            MethodSummary(
                label,
                next((trial.mix.method for trial in trials if trial.mix), base_of(label)),
                style,
                [seed for seed, curve in series[label].items() if curve or merit is None],
                measure(series[label].values()),
                {b: _difference(series[label], series[b]) for b in BASELINES if b in styles and b != label},
                _cost(trials),
                next((trial.goal.name for trial in trials if trial.goal), None),
                _search(trials),
            )
        )
    names = sorted({name for repetition in repetitions for name in repetition.experts})
    experts = [
        ExpertSummary(name, [_evaluated(repetition.experts.get(name, {}), merit) for repetition in repetitions])
        for name in names
    ]
    seeds = [repetition.seed for repetition in repetitions]
    return RowSummary(row, seeds, merit, experts, methods, _notes(repetitions, merit, methods, series))


def _find_merit(repetitions: Sequence[Repetition]) -> Merit | None:
    """Return the first merit that all finetunings have, else that one of them has, else that a checkpoint has."""
    finetunes = [
        trial.finetune for repetition in repetitions for trial in repetition.trials.values() if trial.finetune
    ]
    for enough in (all, any):
        for merit in MERITS:
            if finetunes and enough(f.history[-1].figures.get(merit.key) is not None for f in finetunes):
                return merit
    evaluated = [by_split for repetition in repetitions for by_split in repetition.experts.values()]
    evaluated += [trial.evaluated for repetition in repetitions for trial in repetition.trials.values()]
    known = (merit for merit in MERITS if any(_evaluated(by_split, merit) is not None for by_split in evaluated))
    return next(known, None)


def _evaluated(by_split: Mapping[str, EvaluatedCheckpoint], merit: Merit | None) -> float | None:
    """Return a checkpoint's figure of merit, scaled; None if it is not known."""
    value = by_split[merit.split].figures.get(merit.figure) if merit and merit.split in by_split else None
    return merit.scale * value if merit and value is not None else None


def _series_of(label: str, repetitions: Sequence[Repetition], merit: Merit | None) -> Mapping[int | None, Series]:
    """Return a method's curve for each seed; only the prior, if it was evaluated but not finetuned."""
    series: dict[int | None, dict[int, float]] = {}
    for repetition in repetitions:
        trial = repetition.trials.get(label)
        if trial is None:
            continue
        prior = _evaluated(trial.evaluated, merit)
        series[repetition.seed] = {0: prior} if prior is not None else {}
        for epoch in trial.finetune.history if trial.finetune else ():
            value = epoch.figures.get(merit.key) if merit else None
            if merit and value is not None:
                series[repetition.seed][epoch.epoch] = merit.scale * value
    return series


def _difference(one: Mapping[int | None, Series], other: Mapping[int | None, Series]) -> Measures:
    """Return the measures of one minus the other, seed by seed, at the epochs that both have."""
    return measure(
        {epoch: value - other[seed][epoch] for epoch, value in series.items() if epoch in other[seed]}
        for seed, series in one.items()
        if seed in other
    )


def _cost(trials: Sequence[Trial]) -> dict[str, Stat]:
    costs = [trial.mix.cost_of_choice for trial in trials if trial.mix]
    figures = {"budget": stat(cost.in_forwards for cost in costs)}
    for key in ("forwards", "validation_forwards", "backwards", "examples", "wall_s", "peak_bytes"):
        figures[key] = stat(getattr(cost, key) for cost in costs)
    return {key: figure for key, figure in figures.items() if figure}


def _search(trials: Sequence[Trial]) -> list[Point]:
    """Return the mean validation loss by budget; a seed whose search has ended keeps its last loss."""
    curves = [sorted(_validated(trial).items()) for trial in trials]
    curves = [curve for curve in curves if curve]
    points = []
    for budget in sorted({budget for curve in curves for budget, _ in curve}):
        reached = [[loss for spent, loss in curve if spent <= budget] for curve in curves]
        loss = stat(losses[-1] for losses in reached if losses)
        points += [Point(budget, loss)] if loss else []
    return points


def _validated(trial: Trial) -> dict[int, float]:
    """Return a trial's validation losses by budget: its search's, or else the prior's, which finetuning records.

    A search that does not validate the uniform blend first compares with it at the end, on the same examples. The
    uniform blend's loss then counts as the loss at budget 0.
    """
    if trial.search:
        uniform = trial.mix.uniform_mean if trial.mix and not trial.begins_validated else None
        losses = {step.in_forwards: step.val_loss for step in trial.search if step.val_loss is not None}
        return losses if uniform is None else {0: uniform, **losses}
    if trial.goal and not trial.goal.is_smooth:
        return {}  # finetuning records the loss, not the objective
    first = trial.finetune.history[0] if trial.finetune else None
    loss = first.figures.get("val_loss") if first and first.epoch == 0 else None
    return {trial.mix.cost_of_choice.in_forwards: loss} if trial.mix and loss is not None else {}


def _notes(
    repetitions: Sequence[Repetition],
    merit: Merit | None,
    methods: Sequence[MethodSummary],
    series: Mapping[str, Mapping[int | None, Series]],
) -> list[str]:
    notes = []
    if len(repetitions) == 1:
        notes.append("1 seed: there is no standard deviation, and a difference of a few points may be chance.")
    fewer = [f"{m.style.name} ({len(m.seeds)})" for m in methods if len(m.seeds) < len(repetitions)]
    if fewer:
        notes.append(f"Not every method has figures for all {len(repetitions)} seeds: {', '.join(fewer)}.")
    if merit and merit.split == "val":
        notes.append("The finetunings did not track the test split, so the validation split stands in for it.")
    lengths = {max(curve) for curves in series.values() for curve in curves.values() if curve and max(curve) > 0}
    if len(lengths) > 1:
        notes.append(f"The finetunings differ in length, {min(lengths)} to {max(lengths)} epochs: compare with care.")
    for repetition in repetitions:
        blended = {
            tuple((e.path, e.sha256) for e in trial.mix.experts) for trial in repetition.trials.values() if trial.mix
        }
        if len(blended) > 1:
            where = "The" if repetition.seed is None else f"With seed {repetition.seed}, the"
            notes.append(f"{where} methods did not all blend the same experts.")
    return notes
