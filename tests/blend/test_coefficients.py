import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glue_cli.blend.coefficients import check_alpha, proportional
from glue_cli.foundation.errors import UsageError


@pytest.mark.parametrize("alpha", [[1.0], [0.2, 0.8], [0.0, 1.0], [0.3333333, 0.3333333, 0.3333334], [0.5, 0.5000009]])
def test_coefficients_on_the_simplex(alpha):
    check_alpha(alpha, len(alpha))


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        ([0.5, 0.5], "has 2 coefficients for 3 experts"),
        ([], "has 0 coefficients"),
        ([0.5, 0.75, -0.25], "-0.25 is not a coefficient"),
        ([0.5, 0.5, math.nan], "nan is not a coefficient"),
        ([0.5, math.inf, 0.0], "inf is not a coefficient"),
        ([0.5, 0.4, 0.2], "sums to 1.1, not to 1"),
        ([0.5, 0.5, 0.000002], "sums to 1.000002, not to 1"),
        ([0.0, 0.0, 0.0], "sums to 0, not to 1"),
        ([1e308, 1e308, 1e308], "sums to inf, not to 1"),
    ],
)
def test_coefficients_off_the_simplex(alpha, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        check_alpha(alpha, 3)


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=50).filter(lambda alpha: abs(sum(alpha) - 1) > 1e-5))
def test_the_coefficients_of_the_hint_are_accepted(alpha):
    with pytest.raises(UsageError) as caught:
        check_alpha(alpha, len(alpha))
    if sum(alpha) > 0:
        check_alpha([float(a) for a in caught.value.hint.rpartition(" ")[2].split(",")], len(alpha))


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**12) | st.floats(0, 1e12), min_size=1, max_size=30))
def test_proportional_lies_on_the_simplex(weights):
    alpha = proportional(weights)
    assert all(a >= 0 for a in alpha) and math.isclose(math.fsum(alpha), 1, rel_tol=1e-12)
    if sum(weights):
        found = [a * sum(weights) for a in alpha]
        assert found == pytest.approx(weights, rel=1e-9, abs=1e-300)


def test_proportional_of_nothing_is_uniform():
    assert proportional([0, 0, 0, 0]) == [0.25] * 4
    assert proportional([7]) == [1.0]
