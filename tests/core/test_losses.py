import math

import pytest
import torch
from torch.nn import functional as F

from glue_cli.core.losses import Evaluation, example_losses, n_correct


def test_cross_entropy_by_example():
    outputs, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    found = example_losses("cross_entropy", outputs, labels)
    assert found.shape == (6,) and found.dtype == torch.float32
    wanted = -F.log_softmax(outputs, 1)[torch.arange(6), labels]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 2, 3, 4)])
def test_squared_error_by_example(shape):
    outputs, targets = torch.randn(shape), torch.randn(shape)
    found = example_losses("mse", outputs, targets)
    assert found.shape == (5,)
    torch.testing.assert_close(found, ((outputs - targets) ** 2).reshape(5, -1).mean(1))


@pytest.mark.parametrize(("of_outputs", "of_targets"), [((5, 1), (5,)), ((5,), (5, 1)), ((5, 3, 1), (5, 3))])
def test_a_trailing_one_may_be_left_out(of_outputs, of_targets):
    outputs, targets = torch.randn(of_outputs), torch.randn(of_targets)
    wanted = (outputs.reshape(5, -1) - targets.reshape(5, -1)).square().mean(1)
    torch.testing.assert_close(example_losses("mse", outputs, targets), wanted)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_half_precision_is_reduced_in_float32(loss):
    outputs = torch.randn(300, 5).bfloat16()
    targets = torch.randint(0, 5, (300,)) if loss == "cross_entropy" else torch.randn(300, 5)
    found = example_losses(loss, outputs, targets)
    assert found.dtype == torch.float32
    assert torch.equal(found, example_losses(loss, outputs.float(), targets))


def test_figures_of_labels_do_not_depend_on_the_batches():
    outputs, labels = torch.randn(10, 3), torch.randint(0, 3, (10,))
    whole, parts = Evaluation("cross_entropy"), Evaluation("cross_entropy")
    whole.add(outputs, labels)
    for start in (0, 4, 8):
        parts.add(outputs[start : start + 4], labels[start : start + 4])
    assert whole.figures() == pytest.approx(parts.figures(), rel=1e-6)
    assert (
        whole.figures()["accuracy"] == n_correct(outputs, labels) / 10 == (outputs.argmax(1) == labels).double().mean()
    )
    assert whole.figures()["loss"] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-6)


def test_figures_of_numbers():
    outputs, targets = torch.randn(10, 2), torch.randn(10, 2) + 3
    evaluation = Evaluation("mse")
    evaluation.add(outputs[:7], targets[:7])
    evaluation.add(outputs[7:], targets[7:])
    figures = evaluation.figures()
    errors = (outputs - targets).double()
    spread = (targets.double() - targets.double().mean()).square().sum()
    assert figures["mse"] == pytest.approx(errors.square().mean().item(), rel=1e-6)
    assert figures["loss"] == pytest.approx(figures["mse"], rel=1e-6)
    assert figures["mae"] == pytest.approx(errors.abs().mean().item(), rel=1e-6)
    assert figures["r2"] == pytest.approx(1 - (errors.square().sum() / spread).item(), rel=1e-6)


def test_r2_of_constant_targets_is_no_number():
    evaluation = Evaluation("mse")
    evaluation.add(torch.zeros(3, 1), torch.ones(3, 1))
    assert math.isnan(evaluation.figures()["r2"]) and evaluation.figures()["mse"] == 1
