"""What a row's runs amount to: means and spreads over the seeds, and differences between methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glue_cli.report.sort import Run, Trial, looks_of_runs
from glue_cli.report.statistics import Measures, Point, Series, Stat, measure, stat
from glue_cli.report.styles import Look, base_of
from glue_cli.results.schemas import Evaluation

BASELINES = ("data-size", "proxy", "fullgrad")
GLUE = "spsa"

# What the paper says of GLUE beside each baseline, in points of test accuracy: its section 5.
CLAIMS = {
    "cifar10-resnet20": {"data-size": "up to +6.7", "proxy": "up to +7.0", "fullgrad": "up to +4.5"},
    "svhn-mobilenetv2": {"data-size": "up to +3.8", "proxy": "up to +3.9", "fullgrad": "within 1.4"},
    "imagenette-vit8": {"data-size": "up to +8.5", "proxy": "up to +9.1", "fullgrad": "within 0.5"},
}


@dataclass(frozen=True)
class Merit:
    """The figure that methods are compared by; shown times `scale`, in `unit`, with `digits` after the point."""

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
        method: how alpha was chosen; the label where that is not known.
        seeds: those whose figures of merit are known.
        merit: its figure of merit; against: less that of each baseline, over the seeds that both have.
        cost: what the choice of alpha took, by the keys of `cost` in `glue.mix/1`, and `budget`.
        objective: what the search minimised, such as `loss` or `accuracy`; None without a search.
        search: the validation loss by the budget spent, in forwards: 1 - accuracy where that is the objective.
    """

    label: str
    method: str
    look: Look
    seeds: list[int | None]
    merit: Measures
    against: dict[str, Measures]
    cost: dict[str, Stat]
    objective: str | None
    search: list[Point]


@dataclass(frozen=True)
class ExpertSummary:
    """One expert of a row, over the runs.

    Attributes:
        merit: its figure of merit, a value a run; None where that is not known.
    """

    name: str
    merit: list[float | None]


@dataclass(frozen=True)
class RowSummary:
    """One row of the experiment, over its runs.

    Attributes:
        seeds: one a run; None where it is not known.
        merit: None where no file has figures of merit.
        claims: what the paper says of this row, by baseline.
        notes: what a reader has to know to read the figures.
    """

    row: str
    seeds: list[int | None]
    merit: Merit | None
    experts: list[ExpertSummary]
    methods: list[MethodSummary]
    claims: dict[str, str]
    notes: list[str]


def summarise(row: str, runs: Sequence[Run]) -> RowSummary:
    """Return the summary of a row's runs."""
    merit = _find_merit(runs)
    looks = looks_of_runs(runs)
    series = {label: _series_of(label, runs, merit) for label in looks}
    methods = []
    for label, look in looks.items():
        trials = [run.trials[label] for run in runs if label in run.trials]
        methods.append(
            MethodSummary(
                label,
                next((trial.mix.method for trial in trials if trial.mix), base_of(label)),
                look,
                [seed for seed, curve in series[label].items() if curve or merit is None],
                measure(series[label].values()),
                {b: _difference(series[label], series[b]) for b in BASELINES if b in looks and b != label},
                _cost(trials),
                next((trial.objective for trial in trials if trial.objective), None),
                _search(trials),
            )
        )
    names = sorted({name for run in runs for name in run.experts})
    experts = [ExpertSummary(name, [_evaluated(run.experts.get(name, {}), merit) for run in runs]) for name in names]
    seeds = [run.seed for run in runs]
    return RowSummary(row, seeds, merit, experts, methods, CLAIMS.get(row, {}), _notes(runs, merit, methods, series))


def _find_merit(runs: Sequence[Run]) -> Merit | None:
    """Return the first figure that all finetunings recorded, else that any did, else that the experts have."""
    finetunes = [trial.finetune for run in runs for trial in run.trials.values() if trial.finetune]
    for enough in (all, any):
        for merit in MERITS:
            if finetunes and enough(f.history[-1].figure(merit.key) is not None for f in finetunes):
                return merit
    evaluated = [found for run in runs for found in run.experts.values()]
    evaluated += [trial.evaluated for run in runs for trial in run.trials.values()]
    known = (merit for merit in MERITS if any(_evaluated(found, merit) is not None for found in evaluated))
    return next(known, None)


def _evaluated(found: Mapping[str, Evaluation], merit: Merit | None) -> float | None:
    value = found[merit.split].figure(merit.figure) if merit and merit.split in found else None
    return merit.scale * value if merit and value is not None else None


def _series_of(label: str, runs: Sequence[Run], merit: Merit | None) -> Mapping[int | None, Series]:
    """Return a method's curve with each seed; just the prior where it was evaluated and not finetuned."""
    series: dict[int | None, dict[int, float]] = {}
    for run in runs:
        trial = run.trials.get(label)
        if trial is None:
            continue
        prior = _evaluated(trial.evaluated, merit)
        series[run.seed] = {0: prior} if prior is not None else {}
        for epoch in trial.finetune.history if trial.finetune else ():
            value = epoch.figure(merit.key) if merit else None
            if merit and value is not None:
                series[run.seed][epoch.epoch] = merit.scale * value
    return series


def _difference(one: Mapping[int | None, Series], other: Mapping[int | None, Series]) -> Measures:
    """Return the measures of one less the other: seed by seed, at the epochs that both have."""
    return measure(
        {epoch: value - other[seed][epoch] for epoch, value in series.items() if epoch in other[seed]}
        for seed, series in one.items()
        if seed in other
    )


def _cost(trials: Sequence[Trial]) -> dict[str, Stat]:
    costs = [trial.mix.cost for trial in trials if trial.mix]
    figures = {"budget": stat(cost.budget for cost in costs)}
    for key in ("forwards", "validation_forwards", "backwards", "examples", "wall_s", "peak_bytes"):
        figures[key] = stat(getattr(cost, key) for cost in costs)
    return {key: figure for key, figure in figures.items() if figure}


def _search(trials: Sequence[Trial]) -> list[Point]:
    """Return the validation loss by budget; a seed whose search has ended keeps its last one."""
    curves = [sorted(_validated(trial).items()) for trial in trials]
    curves = [curve for curve in curves if curve]
    points = []
    for budget in sorted({budget for curve in curves for budget, _ in curve}):
        reached = [[loss for spent, loss in curve if spent <= budget] for curve in curves]
        found = stat(losses[-1] for losses in reached if losses)
        points += [Point(budget, found)] if found else []
    return points


def _validated(trial: Trial) -> dict[int, float]:
    """Return a trial's validation losses by budget: of its search, else the prior's own as finetuning found it.

    A search that does not validate the uniform blend first compares with it at the end, on the same examples: it has
    that loss before it spends anything.
    """
    if trial.search:
        uniform = trial.mix.uniform_loss if trial.mix and not trial.begins_validated else None
        found = {step.budget: step.val_loss for step in trial.search if step.val_loss is not None}
        return found if uniform is None else {0: uniform, **found}
    if trial.objective not in (None, "loss"):
        return {}  # which finetuning does not record
    first = trial.finetune.history[0] if trial.finetune else None
    loss = first.figure("val_loss") if first and first.epoch == 0 else None
    return {trial.mix.cost.budget: loss} if trial.mix and loss is not None else {}


def _notes(
    runs: Sequence[Run],
    merit: Merit | None,
    methods: Sequence[MethodSummary],
    series: Mapping[str, Mapping[int | None, Series]],
) -> list[str]:
    notes = []
    if len(runs) == 1:
        notes.append("1 seed: there is no standard deviation, and a difference of a few points may be chance.")
    fewer = [f"{m.look.name} ({len(m.seeds)})" for m in methods if len(m.seeds) < len(runs)]
    if fewer:
        notes.append(f"Not every method has figures for all {len(runs)} seeds: {', '.join(fewer)}.")
    if merit and merit.split == "val":
        notes.append("The finetunings did not track the test split, so the validation split stands in for it.")
    lengths = {max(curve) for curves in series.values() for curve in curves.values() if curve and max(curve) > 0}
    if len(lengths) > 1:
        notes.append(f"The finetunings differ in length, {min(lengths)} to {max(lengths)} epochs: compare with care.")
    for run in runs:
        blended = {tuple((e.path, e.sha256) for e in trial.mix.experts) for trial in run.trials.values() if trial.mix}
        if len(blended) > 1:
            notes.append(f"With seed {run.seed}, the methods did not all blend the same experts.")
    return notes
