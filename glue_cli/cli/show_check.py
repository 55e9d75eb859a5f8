"""The output of glue check: the experts, the pairs of them, what a mix would take, and the verdict."""

from collections.abc import Iterator, Sequence

from glue_cli.cli.output import number, print_facts, print_lines, print_table
from glue_cli.foundation.units import brief, counted, duration, size
from glue_cli.results.check import CheckedExpert, CheckResult, PlannedMix, StepCosts

_MOST_PAIRS = 28  # of 8 experts; --json has all
_LISTED = 5  # items of a difference, as in an error
_WORDS = {
    "mix": "mix",
    "refresh": "mix, and refresh BatchNorm's statistics",
    "no": "do not mix",
}
_ALIKE = 0.1  # of the dearer step: what is nearer differs from one timing to the next
_METHODS = {"spsa": "SPSA", "fullgrad": "the full gradient"}


def show_check(result: CheckResult) -> None:
    """Print what was found, the verdict last."""
    _show_experts(result.experts)
    if any(pair.cosine is not None for pair in result.pairs):
        print()
        _show_pairs(result)
    if result.differences:
        print_lines("", *_difference_lines(result))
    facts = [*(("note", note) for note in result.notes), *_mix_facts(result.mix), *_verdict_facts(result)]
    print()
    print_facts(facts)


def _show_experts(experts: Sequence[CheckedExpert]) -> None:
    from glue_cli.checkpoints.hashing import SHOWN_DIGITS

    rows = [
        [
            f"{k}  {expert.path}",
            size(expert.bytes),
            f"{expert.parameters:,}",
            _faults(expert),
            expert.sha256[:SHOWN_DIGITS],
            number(expert.distance, 2),
        ]
        for k, expert in enumerate(experts)
    ]
    print_table(["expert", "size", "parameters", "NaN, infinity", "sha256", "from the mean"], rows)


def _faults(expert: CheckedExpert) -> str:
    if not expert.non_finite:
        return "none"
    n = sum(tensor.nan + tensor.infinite for tensor in expert.non_finite)
    return f"{n:,} in {expert.non_finite[0].tensor}" + (", ..." if len(expert.non_finite) > 1 else "")


def _show_pairs(result: CheckResult) -> None:
    shown = result.pairs[:_MOST_PAIRS]
    columns = ["experts", "distance", "cosine", "cosine of differences"]
    rows = [
        [
            "{} and {}".format(*pair.experts),
            number(pair.distance, 2),
            number(pair.cosine, 2),
            number(pair.difference_cosine, 2),
        ]
        for pair in shown
    ]
    if losses := result.losses:
        columns += ["loss at the ends", "halfway"]
        for row, pair in zip(rows, shown, strict=True):
            row += [_two(*(losses.experts[k] for k in pair.experts)), number(pair.midpoint, 3)]
        if (refreshed := losses.experts_refreshed) is not None:
            columns += ["refreshed: at the ends", "halfway"]
            for row, pair in zip(rows, shown, strict=True):
                row += [_two(*(refreshed[k] for k in pair.experts)), number(pair.midpoint_refreshed, 3)]
    print_table(columns, rows)
    if len(result.pairs) > len(shown):
        print_lines(f"and {counted(len(result.pairs) - len(shown), 'pair')} more; --json has them")


def _two(one: float, other: float) -> str:
    return f"{number(one, 3)}, {number(other, 3)}"


def _difference_lines(result: CheckResult) -> Iterator[str]:
    """Yield what differs: a line for each respect, and its items below it."""
    for difference in result.differences:
        yield f"{difference.about}: {difference.message}"
        yield from (f"  {item}" for item in difference.items[:_LISTED])
        if len(difference.items) > _LISTED:
            yield f"  and {len(difference.items) - _LISTED} more"


def _mix_facts(mix: PlannedMix) -> Iterator[tuple[str, str]]:
    """Yield what a mix would take, as pairs of a word and a text."""
    kept = mix.bank or f"a search keeps {size(mix.experts_bytes)} in memory; {size(mix.free_bytes)} are free"
    yield "experts", kept
    if mix.seconds is not None:
        forwards = "" if mix.forwards is None else f"at most {counted(mix.forwards, 'forward')}, "
        yield "a search", f"{forwards}about {duration(mix.seconds)}"
    if step := mix.step:
        yield "a step", _step_text(step)


def _step_text(step: StepCosts) -> str:
    costs = {
        "a forward (F)": step.forward_s,
        "a backward (B)": step.backward_s,
        "making a blend (C_mix)": step.blend_s,
        "inner products (C_inner)": step.inner_products_s,
    }
    said = ", ".join(f"{name} {brief(seconds)}" for name, seconds in costs.items() if seconds is not None)
    if step.backward_s is None or step.inner_products_s is None:
        return (
            f"{said} for {counted(step.batch_size, 'example')}; SPSA, as no gradient passes blocks or a quantised base"
        )
    of_spsa, of_gradient = step.forward_s + step.blend_s, step.backward_s + step.inner_products_s
    difference = abs(of_spsa - of_gradient)
    if difference <= max(_ALIKE * max(of_spsa, of_gradient), step.spread_s or 0.0):
        return (
            f"{said} for {counted(step.batch_size, 'example')}; "
            "which of SPSA and the full gradient is cheaper cannot be told here, as F + C_mix is about B + C_inner"
        )
    sign = "<" if step.cheaper == "spsa" else ">="
    why = f"F + C_mix {sign} B + C_inner"
    return f"{said} for {counted(step.batch_size, 'example')}; {_METHODS[step.cheaper]} is cheaper, as {why}"


def _verdict_facts(result: CheckResult) -> Iterator[tuple[str, str]]:
    yield "verdict", _WORDS[result.verdict]
    yield from (("why" if k == 0 else "", reason) for k, reason in enumerate(result.reasons))
    word = "instead" if result.verdict == "no" else "how"
    yield from ((word if k == 0 else "or", text) for k, text in enumerate(result.instead))
