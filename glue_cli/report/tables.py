"""The tables of a row."""

from collections.abc import Sequence
from statistics import fmean

from glue_cli.report.document import Table
from glue_cli.report.settings import list_experts, list_settings
from glue_cli.report.sort import Repetition
from glue_cli.report.statistics import TAIL, Measures, Stat
from glue_cli.report.summary import BASELINES, GLUE, Merit, MethodSummary, RowSummary

_NONE = "-"
MIB = 2**20


def of_merit(row: RowSummary, merit: Merit) -> list[Table | None]:
    """Return the tables of the figure of merit: of the experts, of the methods, and GLUE's lead over baselines."""
    return [_experts_alone(row, merit), _accuracies(row, merit), _comparisons(row, merit)]


def _experts_alone(row: RowSummary, merit: Merit) -> Table | None:
    """Return the figure of merit of each expert, and their mean and best."""
    by_seed = [
        [value for value in values if value is not None]
        for values in zip(*(e.merit for e in row.experts), strict=True)
    ]
    lines: list[tuple[str, Sequence[float | None]]] = [(expert.name, expert.merit) for expert in row.experts]
    lines.append(("mean", [fmean(values) if values else None for values in by_seed]))
    lines.append(("best", [max(values, default=None) for values in by_seed]))
    rows = [[name, *(_number(value, merit.digits) for value in values)] for name, values in lines]
    columns = ["expert", *map(seed_name, row.seeds)]
    return Table(f"{_headed(merit)} of each expert alone", columns, rows) if row.experts else None


def _accuracies(row: RowSummary, merit: Merit) -> Table | None:
    """Return each method's figures of merit before and after finetuning, and its lead over the baselines."""
    methods = [method for method in row.methods if method.merit.curve]
    names = {method.label: method.style.name for method in methods}
    baselines = [label for label in BASELINES if label in names]
    rows = []
    for method in methods:
        line = [method.style.name, ", ".join(_NONE if seed is None else str(seed) for seed in method.seeds)]
        line += [_spread(value, merit.digits) for value in _values(method.merit)]
        for label in baselines:
            lead = method.against.get(label)
            line.append(_spread(lead.epochs if lead else None, merit.digits, signed=True))
        rows.append(line)
    columns = ["start", "seeds", *_measure_names(methods), *(f"mean of all, minus {names[b]}" for b in baselines)]
    return (
        Table(f"{_headed(merit)} before and after finetuning, {_over(row, 'named')}", columns, rows) if rows else None
    )


def _comparisons(row: RowSummary, merit: Merit) -> Table | None:
    """Return GLUE's lead over each baseline."""
    names = {method.label: method.style.name for method in row.methods}
    rows = []
    for method in (method for method in row.methods if method.method == GLUE):
        for label, lead in method.against.items():
            finetuned = [point.y.mean for point in lead.curve if point.x > 0]
            if finetuned:
                line = [f"{method.style.name} minus {names[label]}", str(lead.curve[-1].y.n)]
                line += [_spread(value, merit.digits, signed=True) for value in _values(lead)]
                line.append(" to ".join(_signed(end(finetuned), merit.digits) for end in (min, max)))
                rows.append(line)
    columns = ["difference", "seeds", *_measure_names(row.methods), "least to most in one epoch"]
    caption = f"The lead of GLUE, in points of {merit.name}, {_over(row, 'that both have')}"
    return Table(caption, columns, rows) if rows else None


def costs(row: RowSummary) -> Table | None:
    """Return the cost of choosing alpha."""
    methods = [method for method in row.methods if method.cost]
    keys = ("budget", "forwards", "validation_forwards", "backwards", "examples", "wall_s", "peak_bytes")
    columns = ["method", "budget", "forwards", "of them for validation", "backwards", "examples", "wall time, s"]
    columns.append("peak memory, MiB")
    rows = []
    for method in methods:
        *counts, wall, peak = [method.cost.get(key) for key in keys]
        whole = [f"{count.mean:,.0f}" if count else _NONE for count in counts]
        rows.append(
            [
                method.style.name,
                *whole,
                _number(wall.mean if wall else None),
                f"{peak.mean / MIB:,.0f}" if peak else _NONE,
            ]
        )
    caption = (
        "Cost of choosing alpha, mean over the seeds; the budget counts minibatch forwards, a backward as two. "
        "Peak memory is the GPU's, or without a GPU the whole process's"
    )
    return Table(caption, columns, rows) if rows else None


def alphas(repetitions: Sequence[Repetition], names: dict[str, str]) -> Table | None:
    """Return the alpha that each method chose with each seed."""
    blends = [
        (repetition, label)
        for label in names
        for repetition in repetitions
        if label in repetition.trials and repetition.trials[label].mix
    ]
    chosen = [
        (names[label], seed_name(repetition.seed), mix.alpha)
        for repetition, label in blends
        if (mix := repetition.trials[label].mix)
    ]
    n_experts = max((len(alpha) for _, _, alpha in chosen), default=0)
    rows = [
        [name, seed, *(f"{a:.3f}" for a in alpha), *[_NONE] * (n_experts - len(alpha))] for name, seed, alpha in chosen
    ]
    columns = ["method", "run", *(f"expert {k}" for k in range(n_experts))]
    return Table("The chosen alpha, with the experts in the given order", columns, rows, n_left=2) if rows else None


def settings(repetitions: Sequence[Repetition]) -> Table | None:
    rows = list_settings(repetitions)
    code = frozenset({0, 1})
    return Table("Settings", ["setting", "value", "where"], rows, n_left=3, code=code) if rows else None


def hashes(repetitions: Sequence[Repetition]) -> Table | None:
    rows = list_experts(repetitions)
    columns = ["seed", "expert", "training examples", "sha256"]
    return Table("The experts that were blended", columns, rows, n_left=4, code=frozenset({3})) if rows else None


def seed_name(seed: int | None) -> str:
    return "seed unknown" if seed is None else f"seed {seed}"


def _over(row: RowSummary, which: str) -> str:
    return "1 seed" if len(row.seeds) == 1 else f"mean ± standard deviation over the seeds {which}"


def _headed(merit: Merit) -> str:
    name = capital(merit.name)
    return f"{name} ({merit.unit})" if merit.unit else name


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _measure_names(methods: Sequence[MethodSummary]) -> list[str]:
    last = max((point.x for method in methods for point in method.merit.curve), default=0)
    return ["prior", f"epoch {last}", f"mean of last {min(TAIL, last)}", f"mean of all {last} epochs"]


def _values(measures: Measures) -> list[Stat | None]:
    return [measures.prior, measures.last, measures.tail, measures.epochs]


def _number(value: float | None, digits: int = 1) -> str:
    return _NONE if value is None else f"{value:,.{digits}f}"


def _signed(value: float, digits: int) -> str:
    rounded = round(value, digits) + 0.0  # no -0.0
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{rounded:.{digits}f}"


def _spread(value: Stat | None, digits: int, *, signed: bool = False) -> str:
    if value is None:
        return _NONE
    mean = _signed(value.mean, digits) if signed else _number(value.mean, digits)
    return mean if value.sd is None else f"{mean} ± {value.sd:.{digits}f}"
