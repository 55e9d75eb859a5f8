"""What each example contributes to an evaluation's figures."""

import math

import pytest
import torch

from glue_cli.running.evaluation import Evaluation
from glue_cli.running.losses import IGNORED
from glue_cli.running.metrics import load_metrics


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
    evaluation.count(evaluation.measured(outputs[:2], targets[:2]))
    evaluation.count(evaluation.measured(outputs[2:], targets[2:]))
    found = evaluation.by_example()
    assert set(found) == figures
    for name, values in found.items():
        assert values.shape == (len(targets),)  # an entry a text, not a token
        assert values.mean().item() == pytest.approx(evaluation.figures()[name])


def test_nothing_is_kept_unasked():
    evaluation = Evaluation("cross_entropy")
    evaluation.count(evaluation.measured(draws(2, 3), torch.tensor([0, 1])))
    assert evaluation.by_example() == {}


def auroc(outputs, labels):
    """The mean over classes of the share of pairs that the class's probability orders rightly."""
    shares = []
    for number, scores in enumerate(outputs.double().softmax(1).T):
        own, others = scores[labels == number], scores[labels != number]
        shares.append((own[:, None] > others).double().mean().item())
    return sum(shares) / len(shares)


def test_outputs_between_0_and_1_are_no_probabilities(torchmetrics):
    """Of the same model with another constant in its bias, the figures are the same."""
    labels = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(1))
    outputs = draws(40, 3) / 10
    outputs[:20] += 0.4
    assert 0 < outputs[:20].min() and outputs[:20].max() < 1 and outputs[20:].min() < 0
    evaluation = Evaluation("cross_entropy", load_metrics("cross_entropy", ["auroc", "f1"]))
    for part in (slice(0, 20), slice(20, 39), slice(39, 40)):
        evaluation.count(evaluation.measured(outputs[part], labels[part]))
    assert evaluation.figures()["auroc"] == pytest.approx(auroc(outputs, labels), abs=1e-6)


def test_nine_of_ten_are_a_recall_of_0_9(torchmetrics):
    labels = torch.arange(30) % 3
    answers = labels.clone()
    answers[:3] = (labels[:3] + 1) % 3
    evaluation = Evaluation("cross_entropy", load_metrics("cross_entropy", ["recall", "precision", "f1"]))
    evaluation.count(evaluation.measured(torch.nn.functional.one_hot(answers, 3).float(), labels))
    figures = evaluation.figures()
    assert figures["recall"] == figures["precision"] == figures["f1"] == figures["accuracy"] == 0.9


def test_without_an_answer_a_metric_has_no_value(torchmetrics):
    outputs = draws(6, 3)
    outputs[5, 1] = math.nan
    evaluation = Evaluation("cross_entropy", load_metrics("cross_entropy", ["recall", "auroc"]))
    evaluation.count(evaluation.measured(outputs[:4], torch.tensor([0, 1, 2, 0])))
    evaluation.count(evaluation.measured(outputs[4:], torch.tensor([1, 2])))
    assert math.isnan(evaluation.figures()["recall"]) and math.isnan(evaluation.figures()["auroc"])
