"""Whether to mix: a verdict on what was found, why, and what to do, in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass

from glue_cli.blend.misfit import Misfit
from glue_cli.foundation.units import counted, listed
from glue_cli.results.check import Verdict
from glue_cli.workflows.check.basin import Basin
from glue_cli.workflows.check.midpoints import Losses
from glue_cli.workflows.check.weights import NonFinite

_ONE_START = "train the experts from one start: experts.init: shared, or the path of a pretrained checkpoint"
_BEST = "take the expert that does best on the target: glue evaluate EXPERT... --split val"
_FINETUNE = "train on the target's data, from that expert: glue finetune EXPERT"
_NEW_HEADS = (
    "they are heads, drawn anew in each, and a mix of those is worth little: keep one's or begin anew, with "
    "--head PATTERN --head-policy from:EXPERT or reset"
)
_REFRESH = "take BatchNorm's statistics anew on the target's data: --batchnorm refresh, or auto, a search's default"


@dataclass(frozen=True)
class Judged:
    """A verdict.

    Attributes:
        reasons, instead: why, and what to do, in sentences.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    instead: tuple[str, ...]


def judge(
    names: Sequence[str],
    misfits: Sequence[Misfit],
    non_finite: Sequence[Sequence[NonFinite]],
    basin: Basin | None,
    losses: Losses | None,
) -> Judged:
    """Decide whether to mix experts: by what differs, by NaN and infinity, by their weights, and then by losses.

    Experts whose weights are unrelated are not mixed whatever the losses are: see `midpoints`.

    Args:
        names: of the experts, [K].
        basin: None for adapters, which start at their base.
        losses: None if they were not measured.
    """
    if misfits:
        hints = tuple(dict.fromkeys(misfit.hint for misfit in misfits if misfit.hint))
        return Judged("no", tuple(misfit.message for misfit in misfits), hints)
    if broken := [name for name, tensors in zip(names, non_finite, strict=True) if tensors]:
        what = f"{listed(broken)} {'has' if len(broken) == 1 else 'have'} NaN or infinity"
        return Judged("no", (what,), (f"leave {'it' if len(broken) == 1 else 'them'} out, or mend the weights",))
    if basin and not basin.is_one:
        return Judged("no", (*_of_weights(basin), *(losses.describe() if losses else ())), _instead(names, basin))
    reasons = _of_weights(basin) if basin and basin.is_known else ()
    if losses is None:
        return Judged("mix", reasons or ("nothing that was compared differs",), ())
    reasons += losses.describe()
    if losses.best is None:
        return Judged("no", reasons, (_BEST, _FINETUNE))
    return Judged("mix", reasons, ()) if losses.best == "averaged" else Judged("refresh", reasons, (_REFRESH,))


def _of_weights(basin: Basin) -> tuple[str, ...]:
    low, high = basin.pair_cosines.min().item(), basin.pair_cosines.max().item()
    between = f"{low:.2f}" if len(basin.pair_cosines) == 1 else f"{low:.2f} to {high:.2f}"
    said = (
        f"cosine between the experts' weights: {between}; from one start it is about 0.6 and more, otherwise about 0"
    )
    if not basin.unlike:
        return (said,)
    unlike = f"these tensors are unrelated between two experts: {listed(basin.unlike)}"
    return (said, f"{unlike}; {_NEW_HEADS}" if basin.is_one else unlike)


def _instead(names: Sequence[str], basin: Basin) -> tuple[str, ...]:
    """Say what to do with experts that are not related."""
    if basin.is_permuted:
        return ("bring the hidden units of all experts into the first one's order (re-basin), and check again", _BEST)
    family = basin.largest_family()
    if 1 < len(family) < len(names):
        odd = [name for k, name in enumerate(names) if k not in family]
        return (f"mix {counted(len(family), 'expert')} without {listed(odd)}, which had another start", _BEST)
    return _ONE_START, _BEST
