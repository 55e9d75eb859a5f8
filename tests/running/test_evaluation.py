"""What each example contributes to an evaluation's figures."""

import pytest
import torch

from glue_cli.running.evaluation import Evaluation
from glue_cli.running.losses import IGNORED


def draws(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tokens():
    """Three texts of 2, 4 and 1 tokens, of 5 kinds."""
    targets = torch.tensor([[1, 2, IGNORED, IGNORED], [0, 4, 3, 1], [2, IGNORED, IGNORED, IGNORED]])
    return draws(3, 4, 5), targets


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "figures"),
    [
        ("cross_entropy", draws(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), {"loss", "accuracy"}),
        ("cross_entropy", *tokens(), {"loss"}),
        ("mse", draws(6, 2), torch.zeros(6, 2), {"loss"}),
    ],
    ids=["labels", "tokens", "numbers"],
)
def test_the_mean_over_examples_is_the_figure(loss, outputs, targets, figures):
    evaluation = Evaluation(loss, keeps_examples=True)
    evaluation.add(outputs[:2], targets[:2])
    evaluation.add(outputs[2:], targets[2:])
    found = evaluation.by_example()
    assert set(found) == figures
    for name, values in found.items():
        assert values.shape == (len(targets),)  # an entry a text, not a token
        assert values.mean().item() == pytest.approx(evaluation.figures()[name])


def test_nothing_is_kept_unasked():
    evaluation = Evaluation("cross_entropy")
    evaluation.add(draws(2, 3), torch.tensor([0, 1]))
    assert evaluation.by_example() == {}
