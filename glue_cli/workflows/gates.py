"""Compare the figures of checkpoints with what was demanded of them."""

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from glue_cli.plans.evaluate import EvaluatePlan
from glue_cli.results.evaluate import EvaluatedCheckpoint, Gate

ByExample = Mapping[str, Tensor]  # by the name of a figure: each example's contribution to it, [N]
# A checkpoint fails the comparison if it is worse by more than this many standard errors. By chance alone, one in 44
# equally good checkpoints is.
_ERRORS = 2


def gates_of(
    plan: EvaluatePlan,
    evaluated: Sequence[tuple[EvaluatedCheckpoint, ByExample]],
    baseline: tuple[EvaluatedCheckpoint, ByExample] | None,
) -> list[Gate]:
    """Return all gates of the checkpoints: the plan's bars and ceilings, and the comparison with the baseline."""
    gates: list[Gate] = []
    for row, by_example in evaluated:
        gates += _bars(plan, row)
        if baseline:
            gates += _comparison(row.checkpoint, by_example, baseline[0].checkpoint, baseline[1])
    return gates


def _bars(plan: EvaluatePlan, row: EvaluatedCheckpoint) -> Iterator[Gate]:
    """Compare a checkpoint's figures with the plan's bars and ceilings; NaN misses all of them."""
    for demand, bars in (("under", plan.bars), ("over", plan.ceilings)):
        for name, bar in bars.items():
            value = row.figures[name]
            assert value is not None
            missed = not (value >= bar if demand == "under" else value <= bar)
            is_or_not = "is" if missed else "is not"
            yield Gate(
                checkpoint=row.checkpoint,
                demand=demand,
                figure=name,
                value=value,
                bar=bar,
                missed=missed,
                text=f"{name} {value:.4f} {is_or_not} {demand} {bar:g}",
            )


def _comparison(checkpoint: str, by_example: ByExample, baseline: str, of_baseline: ByExample) -> Iterator[Gate]:
    """Compare a checkpoint with a baseline, figure by figure and paired by example.

    Examples that are hard for one model are often hard for the other, so the difference between two models on the
    same examples varies far less than the figures of either.

    Args:
        by_example, of_baseline: the two models' contributions, with the examples, at least two, in the same order.
    """
    for name, values in by_example.items():
        value, bar = values.mean().item(), of_baseline[name].mean().item()
        if name == "loss" and not (math.isfinite(value) and math.isfinite(bar)):
            missed = not math.isfinite(value)
            text = f"loss is {value:.4f}, and that of {baseline} is {bar:.4f}"
            yield Gate(
                checkpoint=checkpoint, demand="compare", figure=name, value=value, bar=bar, missed=missed, text=text
            )
            continue
        worse = (of_baseline[name] - values) * (-1 if name == "loss" else 1)  # [N]; a higher accuracy is better
        mean = worse.mean().item()
        error = worse.std().item() / math.sqrt(len(worse))
        how = f"{abs(mean):.4f} ± {error:.4f} {'worse' if mean > 0 else 'better'} than" if mean else "the same as"
        yield Gate(
            checkpoint=checkpoint,
            demand="compare",
            figure=name,
            value=value,
            bar=bar,
            standard_error=error,
            missed=not mean <= _ERRORS * error,
            text=f"{name} is {how} that of {baseline}",
        )
