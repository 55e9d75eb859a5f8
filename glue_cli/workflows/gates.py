"""What was demanded of checkpoints, held against what was found."""

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from glue_cli.plans.evaluate import EvaluatePlan
from glue_cli.results.evaluate import EvaluatedCheckpoint, Gate

ByExample = Mapping[str, Tensor]  # what each example contributes to a figure, [N], by the figure's name
# By how many standard errors a checkpoint has to be worse before that is more than chance: of two that are equally
# good, one in 44 is.
_ERRORS = 2


def gates_of(
    plan: EvaluatePlan,
    found: Sequence[tuple[EvaluatedCheckpoint, ByExample]],
    baseline: tuple[EvaluatedCheckpoint, ByExample] | None,
) -> list[Gate]:
    """Return all gates of the checkpoints: the plan's bars and ceilings, and the comparison with the baseline."""
    gates: list[Gate] = []
    for row, by_example in found:
        gates += _bars(plan, row)
        if baseline:
            gates += _comparison(row.checkpoint, by_example, baseline[0].checkpoint, baseline[1])
    return gates


def _bars(plan: EvaluatePlan, found: EvaluatedCheckpoint) -> Iterator[Gate]:
    """Hold a checkpoint's figures against the plan's bars and ceilings; a figure that is NaN misses every one."""
    for demand, bars in (("under", plan.bars), ("over", plan.ceilings)):
        for name, bar in bars.items():
            value = found.figures[name]
            assert value is not None
            missed = not (value >= bar if demand == "under" else value <= bar)
            is_or_not = "is" if missed else "is not"
            yield Gate(
                checkpoint=found.checkpoint,
                demand=demand,
                figure=name,
                value=value,
                bar=bar,
                missed=missed,
                text=f"{name} {value:.4f} {is_or_not} {demand} {bar:g}",
            )


def _comparison(checkpoint: str, by_example: ByExample, baseline: str, of_baseline: ByExample) -> Iterator[Gate]:
    """Compare a checkpoint with a baseline, figure by figure and paired by example.

    Examples that are hard for one model are hard for the other: the difference of two models on the same examples
    scatters far less than either.

    Args:
        by_example, of_baseline: of the two, in the same order of examples.
    """
    for name, values in by_example.items():
        worse = (of_baseline[name] - values) * (-1 if name == "loss" else 1)  # [N]; more of the accuracy is better
        mean = worse.mean().item()
        error = worse.std().item() / math.sqrt(len(worse)) if len(worse) > 1 else None
        missed = not (error is None or mean <= _ERRORS * error)
        beside = f" ± {error:.4f}" if error is not None else ", of a single example"
        yield Gate(
            checkpoint=checkpoint,
            demand="compare",
            figure=name,
            value=values.mean().item(),
            bar=of_baseline[name].mean().item(),
            standard_error=error,
            missed=missed,
            text=f"{name} is {abs(mean):.4f}{beside} {'worse' if mean > 0 else 'better'} than that of {baseline}",
        )
