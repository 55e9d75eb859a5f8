"""From findings to a verdict, in the order in which they count."""

import pytest
import torch

from glue_cli.blend.misfit import Misfit
from glue_cli.workflows.check.basin import Basin
from glue_cli.workflows.check.midpoints import Losses
from glue_cli.workflows.check.verdict import judge
from glue_cli.workflows.check.weights import NonFinite

NAMES = ["a", "b"]
FINITE = [[], []]


def basin(cosine, unlike=(), is_permuted=False, heads=()):
    cosines = torch.tensor([[1.0, cosine], [cosine, 1.0]])
    return Basin(cosines, cosines, cosines, torch.zeros(2), unlike, is_permuted, heads)


def losses(averaged, refreshed=None, error=0.0):
    """Ends at 1 and 2."""
    kinds = {"averaged": averaged} | ({"refreshed": refreshed} if refreshed else {})
    midpoints, errors = ({kind: {(0, 1): what(kind)} for kind in kinds} for what in (kinds.get, lambda kind: error))
    return Losses({kind: [1.0, 2.0] for kind in kinds}, midpoints, None, 100, errors)


@pytest.mark.parametrize(
    ("of_weights", "measured", "wanted"),
    [
        (basin(0.8), None, "mix"),
        (basin(0.1), None, "no"),
        (basin(float("nan")), None, "mix"),  # nothing is known
        (None, None, "mix"),
        (basin(0.8), losses(1.4), "mix"),
        (basin(0.8), losses(1.9), "no"),
        (basin(0.8), losses(1.9, error=0.1), "no"),
        (basin(0.8), losses(1.9, error=0.2), "mix"),  # so few examples do not tell
        (basin(0.8), losses(1.9, 1.4), "refresh"),
        (basin(0.8), losses(1.4, 1.39), "mix"),  # what refreshing gains is no gain
        (basin(0.8), losses(1.4, 1.0), "refresh"),
        (basin(0.8), losses(1.9, 1.9), "no"),
        (basin(0.8), losses(float("nan")), "no"),
        (basin(0.0), losses(0.5), "no"),  # a low loss may be that of guessing
        (None, losses(1.9), "no"),
    ],
)
def test_weights_and_losses_decide(of_weights, measured, wanted):
    found = judge(NAMES, (), FINITE, of_weights, measured)
    assert found.verdict == wanted and found.reasons
    assert bool(found.instead) == (wanted != "mix")


@pytest.mark.parametrize(("best", "verdict"), [(0.9, "mix"), (1.01, "no")])
def test_one_pair_that_helps_is_enough(best, verdict):
    """The third expert does not go with the first."""
    midpoints = {(0, 1): best, (0, 2): 2.5, (1, 2): 1.5}
    found = Losses(
        {"averaged": [1.0, 1.1, 2.0]}, {"averaged": midpoints}, None, 100, {"averaged": dict.fromkeys(midpoints, 0.01)}
    )
    judged = judge(["a", "b", "c"], (), [[]] * 3, None, found)
    assert judged.verdict == verdict
    assert ("between 0 and 1 it is 0.900, below that of every expert" in judged.reasons) == (verdict == "mix")


def test_what_keeps_experts_from_being_blended_comes_first():
    misfit = Misfit("tensors", "they differ", ("here",), "do this")
    found = judge(NAMES, [misfit, misfit], [[NonFinite("w", 1, 0)], []], basin(0.9), None)
    assert (found.verdict, found.reasons, found.instead) == ("no", ("they differ", "they differ"), ("do this",))


def test_broken_experts_are_named():
    found = judge(NAMES, (), [[], [NonFinite("w", 1, 0)]], basin(float("nan")), None)
    assert found.verdict == "no" and found.reasons == ("b has NaN or infinity",) and "leave it out" in found.instead[0]


def test_new_heads_are_told_with_what_to_do_about_them():
    names = ("classifier.weight",)
    found = judge(NAMES, (), FINITE, basin(0.9, names, heads=names), None)
    assert found.verdict == "mix" and "drawn anew in each" in found.reasons[-1] and "--head" in found.reasons[-1]
    assert "drawn anew" not in " ".join(judge(NAMES, (), FINITE, basin(0.9, names), None).reasons)


def test_what_to_do_depends_on_why_they_are_unrelated():
    assert "one start" in judge(NAMES, (), FINITE, basin(0.0), None).instead[0]
    assert "order" in judge(NAMES, (), FINITE, basin(0.0, ("0.weight",), True), None).instead[0]
    three = torch.tensor([[1.0, 0.0, 0.9], [0.0, 1.0, 0.0], [0.9, 0.0, 1.0]])
    apart = Basin(three, three, three, torch.zeros(3), (), False)
    assert "without b" in judge(["a", "b", "c"], (), [[]] * 3, apart, None).instead[0]


@pytest.mark.parametrize(
    ("ends", "halfway", "guessing", "is_sound"),
    [
        ([0.2, 2e11], 2e10, 1.09, False),
        ([0.2, 25.2], 5.24, 1.09, False),
        ([0.2, 25.2], 1.5, 1.09, True),  # of no classes in common, say: the blend is what helps
        ([2.9, 3.1], 3.0, 2.3, True),  # too sure of themselves, all of them
        ([0.2, 2e11], 2e10, None, True),
    ],
)
def test_an_expert_that_has_diverged_does_not_excuse_a_midpoint(ends, halfway, guessing, is_sound):
    losses = Losses({"averaged": ends}, {"averaged": {(0, 1): halfway}}, guessing, 100, {"averaged": {(0, 1): 0.0}})
    assert losses.best == ("averaged" if is_sound else None)


@pytest.mark.parametrize(
    ("guessing", "said"),
    [
        (3.0, []),
        (1.2, []),
        (0.9, ["better than guessing"]),
        (0.0, ["of one class", "better than guessing"]),
    ],
)
def test_experts_that_do_no_better_than_guessing_are_told(guessing, said):
    found = Losses({"averaged": [1.0, 2.0]}, {"averaged": {(0, 1): 1.4}}, guessing, 100, {"averaged": {(0, 1): 0.0}})
    more = found.describe()[2:]
    assert len(more) == len(said) and all(part in sentence for part, sentence in zip(said, more, strict=True))
