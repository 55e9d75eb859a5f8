import math

import pytest
import torch
from torch.nn import functional as F

from glue_cli.running.evaluation import Evaluation
from glue_cli.running.losses import IGNORED, example_losses
from glue_cli.running.metrics import METRICS, load_metrics


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


def test_outputs_may_lie_in_another_order_in_memory():
    outputs, targets = torch.randn(5, 3, 4).transpose(1, 2), torch.randn(5, 12)
    wanted = (outputs.reshape(5, 12) - targets).square().mean(1)
    torch.testing.assert_close(example_losses("mse", outputs, targets), wanted)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_half_precision_is_reduced_in_float32(loss):
    outputs = torch.randn(300, 5).bfloat16()
    targets = torch.randint(0, 5, (300,)) if loss == "cross_entropy" else torch.randn(300, 5)
    found = example_losses(loss, outputs, targets)
    assert found.dtype == torch.float32
    assert torch.equal(found, example_losses(loss, outputs.float(), targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_by_token(dtype):
    outputs, targets = torch.randn(3, 5, 7).to(dtype), torch.randint(0, 7, (3, 5))
    targets[0, 3:] = targets[1] = targets[2, 4] = IGNORED
    found = example_losses("cross_entropy", outputs, targets)
    wanted = F.cross_entropy(outputs.float().flatten(0, 1), targets.flatten(), reduction="none")
    assert found.shape == (7,) and found.dtype == torch.float32
    torch.testing.assert_close(found, wanted[targets.flatten() != IGNORED])


def test_the_gradient_of_ignored_tokens_is_zero_and_that_of_the_others_torch_s():
    outputs = torch.randn(3, 5, 7, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 7, (3, 5))
    targets[:, 4] = targets[1, 2] = IGNORED
    own = torch.autograd.grad(example_losses("cross_entropy", outputs, targets).mean(), outputs)[0]
    wanted = torch.autograd.grad(F.cross_entropy(outputs.flatten(0, 1), targets.flatten()), outputs)[0]
    torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-7)
    assert not own[targets == IGNORED].any()


def test_figures_of_labels_do_not_depend_on_the_batches():
    outputs, labels = torch.randn(10, 3), torch.randint(0, 3, (10,))
    whole, parts = Evaluation("cross_entropy"), Evaluation("cross_entropy")
    whole.count(whole.measured(outputs, labels))
    for start in (0, 4, 8):
        parts.count(parts.measured(outputs[start : start + 4], labels[start : start + 4]))
    assert whole.figures() == pytest.approx(parts.figures(), rel=1e-6)
    assert whole.figures()["accuracy"] == (outputs.argmax(1) == labels).double().mean()
    assert whole.figures()["loss"] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-6)
    assert set(whole.figures()) == {"loss", "accuracy"}


def test_the_accuracy_of_each_class():
    outputs = torch.eye(4)[[0, 0, 1, 1, 2, 1]]
    evaluation = Evaluation("cross_entropy")
    evaluation.count(evaluation.measured(outputs[:4], torch.tensor([0, 1, 1, 1])))
    evaluation.count(evaluation.measured(outputs[4:], torch.tensor([2, 0])))
    assert evaluation.class_accuracies() == [0.5, 2 / 3, 1, None]


def test_figures_of_a_language_model_count_tokens():
    outputs, targets = torch.randn(4, 6, 5), torch.randint(0, 5, (4, 6))
    targets[0, 1:] = targets[1, 5] = IGNORED
    evaluation = Evaluation("cross_entropy")
    evaluation.count(evaluation.measured(outputs[:1], targets[:1]))
    evaluation.count(evaluation.measured(outputs[1:], targets[1:]))
    loss = F.cross_entropy(outputs.flatten(0, 1), targets.flatten()).item()
    assert evaluation.figures() == pytest.approx({"loss": loss, "perplexity": math.exp(loss)}, rel=1e-6)
    assert evaluation.class_accuracies() == []
    evaluation.count(evaluation.measured(1e6 * outputs, targets))
    assert evaluation.figures()["perplexity"] == math.inf


def test_figures_of_numbers(torchmetrics):
    outputs, targets = torch.randn(10, 2), torch.randn(10, 2) + 1e4
    evaluation = Evaluation("mse", load_metrics("mse", ["mae", "r2"]))
    evaluation.count(evaluation.measured(outputs[:7], targets[:7]))
    evaluation.count(evaluation.measured(outputs[7:], targets[7:]))
    figures = evaluation.figures()
    errors = (outputs.double() - targets.double()).numpy()
    spread = targets.double() - targets.double().mean(0)
    assert figures["mse"] == pytest.approx((errors**2).mean(), rel=1e-6) and figures["loss"] == figures["mse"]
    assert figures["mae"] == pytest.approx(abs(errors).mean(), rel=1e-6)
    r2 = 1 - (errors**2).sum(0) / spread.square().sum(0).numpy()  # of each number, then the mean
    assert figures["r2"] == pytest.approx(r2.mean(), rel=1e-6)
    assert evaluation.class_accuracies() == []


def test_r2_of_a_single_example_is_no_number(torchmetrics):
    evaluation = Evaluation("mse", load_metrics("mse", ["r2"]))
    evaluation.count(evaluation.measured(torch.zeros(1, 1), torch.ones(1)))
    assert math.isnan(evaluation.figures()["r2"]) and evaluation.figures()["mse"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metrics_of_labels_are_means_over_the_classes(torchmetrics, dtype):
    draws = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(60, 3, generator=draws).to(dtype), torch.randint(0, 3, (60,), generator=draws)
    evaluation = Evaluation("cross_entropy", load_metrics("cross_entropy", [*METRICS["cross_entropy"]]))
    evaluation.count(evaluation.measured(outputs[:50], labels[:50]))
    evaluation.count(evaluation.measured(outputs[50:], labels[50:]))
    wanted: dict[str, list[float]] = {name: [] for name in ("f1", "precision", "recall", "auroc")}
    for c in range(3):
        is_c, said_c = labels == c, outputs.argmax(1) == c
        hits = int((is_c & said_c).sum())
        wanted["precision"].append(hits / int(said_c.sum()))
        wanted["recall"].append(hits / int(is_c.sum()))
        wanted["f1"].append(2 * hits / int(said_c.sum() + is_c.sum()))
        scores = outputs.float().softmax(1)[:, c]
        above = (scores[is_c][:, None] > scores[~is_c]).double() + 0.5 * (scores[is_c][:, None] == scores[~is_c])
        wanted["auroc"].append(above.mean().item())
    figures = evaluation.figures()
    for name, values in wanted.items():
        assert figures[name] == pytest.approx(sum(values) / 3, abs=1e-5), name


@pytest.mark.filterwarnings("ignore:No positive samples")
@pytest.mark.filterwarnings("ignore:No negative samples")
def test_auroc_is_a_mean_over_the_classes_that_have_examples(torchmetrics):
    draws = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(40, 3, generator=draws), torch.randint(0, 2, (40,), generator=draws)

    def auroc(outputs, labels):
        evaluation = Evaluation("cross_entropy", load_metrics("cross_entropy", ["auroc"]))
        evaluation.count(evaluation.measured(outputs, labels))
        return evaluation.figures()["auroc"]

    scores = outputs.softmax(1)
    wanted = [(scores[labels == c, c][:, None] > scores[labels != c, c]).double().mean().item() for c in range(2)]
    assert auroc(outputs, labels) == pytest.approx(sum(wanted) / 2, abs=1e-5)
    assert math.isnan(auroc(outputs, torch.zeros_like(labels)))
