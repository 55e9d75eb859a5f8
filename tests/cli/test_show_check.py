"""What glue check says of a step's costs."""

import pytest

from glue_cli.cli.show_check import _step_text
from glue_cli.results.check import StepCosts


@pytest.mark.parametrize(
    ("forward_s", "spread_s", "cheaper", "said"),
    [
        (0.16, 0.1, "spsa", "SPSA is cheaper, as F + C_mix < B + C_inner"),
        (0.16, 0.6, "spsa", "cannot be told here"),
        (0.68, 0.0, "spsa", "cannot be told here"),
        (0.73, 0.0, "fullgrad", "cannot be told here"),
        (1.24, 0.1, "fullgrad", "the full gradient is cheaper, as F + C_mix >= B + C_inner"),
    ],
)
def test_a_step_in_plain_figures(forward_s, spread_s, cheaper, said):
    costs = StepCosts(
        batch_size=30,
        forward_s=forward_s,
        backward_s=0.72,
        blend_s=0.013,
        inner_products_s=0.0,
        cheaper=cheaper,
        spread_s=spread_s,
    )
    text = _step_text(costs)
    assert said in text and "e+" not in text
    assert "a backward (B) 720 ms, making a blend (C_mix) 13 ms, inner products (C_inner) 0 ms for 30 examples" in text
