"""When an epoch of a finetuning is better than its start; what the error is, see `test_learning_rates`."""

import math

import pytest

from glue_cli.workflows.judging import is_better


@pytest.mark.parametrize(
    ("loss", "start", "error", "better"),
    [
        (0.7, 1.0, 0.1, True),
        (0.81, 1.0, 0.1, False),
        (1.0, 1.0, 0.0, False),
        (0.99, 1.0, 0.0, True),  # a single example has no error
        (math.inf, 1.0, math.nan, False),
        (math.nan, 1.0, math.nan, False),
        (5.0, math.nan, math.nan, True),
        (5.0, math.inf, math.inf, True),
        (math.nan, math.inf, math.nan, False),
    ],
)
def test_better_by_two_standard_errors_of_few_examples(loss, start, error, better):
    assert is_better(loss, start, error, 49) is better


def test_of_more_examples_one_standard_error_is_enough():
    assert is_better(0.89, 1.0, 0.1, 50) and not is_better(0.91, 1.0, 0.1, 50)
