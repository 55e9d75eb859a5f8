import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glue_cli.foundation.errors import SpecError
from glue_cli.running.evaluation import Evaluation
from glue_cli.running.losses import IGNORED, example_losses
from glue_cli.running.metrics import load_metrics
from glue_cli.search.criterion import criterion_of

CODE = """\
import numpy as np, torch

def score(outputs, targets):
    assert (outputs.dtype, targets.dtype) == (torch.bfloat16, torch.int64)
    return (outputs.argmax(1) == targets).double().mean()

def fails(outputs, targets):
    return torch.stack([])

def lonely(outputs): return 0
def loud(outputs, targets, weights): return 0
def anything(*tensors): return len(tensors)
"""


@pytest.fixture
def load(tmp_path):
    """Load a function of the user's module, beside the spec, as a score."""
    (tmp_path / "my_code.py").write_text(CODE)
    return lambda function, loss="cross_entropy": criterion_of(f"python:my_code:{function}", loss, tmp_path).terms


@pytest.fixture
def score_of(tmp_path):
    """Return the terms where the user's function returns the value of an expression."""

    def score_of(value):
        (tmp_path / "own.py").write_text(f"import numpy as np, torch\ndef given(outputs, targets): return {value}\n")
        return criterion_of("python:own:given", "cross_entropy", tmp_path).terms(torch.zeros(4, 2), torch.zeros(4))

    return score_of


def macro_f1(predicted, wanted):
    """Macro F1 in plain Python, from precision and recall, over the classes that occur."""
    by_class = []
    for c in {*predicted, *wanted}:
        n_hits = sum(p == w == c for p, w in zip(predicted, wanted, strict=True))
        precision = n_hits / predicted.count(c) if c in predicted else 0
        recall = n_hits / wanted.count(c) if c in wanted else 0
        by_class.append(2 * precision * recall / (precision + recall) if n_hits else 0)
    return sum(by_class) / len(by_class)


@st.composite
def predictions(draw):
    """Draw the number of classes, and a predicted and a wanted label for each example."""
    n_classes = draw(st.integers(1, 6))
    labels = st.integers(0, n_classes - 1)
    pairs = draw(st.lists(st.tuples(labels, labels), min_size=1, max_size=12))
    return n_classes, *(list(labels) for labels in zip(*pairs, strict=True))


def outputs_for(predicted, n_classes, dtype=torch.float32):
    """Return outputs whose largest is at the predicted label."""
    noise = torch.rand(*torch.tensor(predicted).shape, n_classes).to(dtype)
    return noise + 2 * torch.nn.functional.one_hot(torch.tensor(predicted), n_classes)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_the_loss_is_that_of_each_example(tmp_path, loss):
    outputs = torch.randn(5, 3)
    targets = torch.randn(5, 3) if loss == "mse" else torch.randint(0, 3, (5,))
    criterion = criterion_of("loss", loss, tmp_path)
    assert (criterion.goal.name, criterion.loss) == ("loss", loss)
    assert torch.equal(criterion.terms(outputs, targets), example_losses(loss, outputs, targets))


@settings(deadline=None)
@given(predictions(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_accuracy_and_f1_of_labels(tmp_path_factory, drawn, dtype):
    n_classes, predicted, wanted = drawn
    outputs, targets = outputs_for(predicted, n_classes, dtype), torch.tensor(wanted)
    folder = tmp_path_factory.getbasetemp()
    mistakes = criterion_of("accuracy", "cross_entropy", folder).terms(outputs, targets)
    assert mistakes.tolist() == [float(p != w) for p, w in zip(predicted, wanted, strict=True)]
    assert mistakes.dtype == torch.float32
    f1 = criterion_of("f1", "cross_entropy", folder).terms(outputs, targets)
    assert f1.shape == (1,) and f1.dtype == torch.float64
    assert f1.item() == pytest.approx(1 - macro_f1(predicted, wanted), abs=1e-12)


def test_they_are_the_figures_of_an_evaluation(tmp_path, torchmetrics):
    outputs, targets = torch.randn(40, 7), torch.randint(0, 5, (40,))  # two classes are in the predictions alone
    evaluation = Evaluation("cross_entropy", load_metrics("cross_entropy", ["f1"]))
    evaluation.count(evaluation.measured(outputs, targets))
    for name in ("accuracy", "f1"):
        term = criterion_of(name, "cross_entropy", tmp_path).terms(outputs, targets).mean().item()
        assert 1 - term == pytest.approx(evaluation.figures()[name], abs=1e-6), name


@pytest.mark.parametrize("name", ["accuracy", "f1"])
def test_tokens_count_one_by_one_and_ignored_ones_not_at_all(tmp_path, name):
    outputs, targets = torch.randn(3, 5, 4), torch.randint(0, 4, (3, 5))
    targets[0, 3:] = targets[1] = IGNORED
    counts = targets != IGNORED
    score = criterion_of(name, "cross_entropy", tmp_path).terms
    found = score(outputs, targets)
    assert torch.equal(found, score(outputs[counts], targets[counts]))
    assert found.shape == ((8,) if name == "accuracy" else (1,))
    outputs[1] = torch.nan  # of a text without targets
    assert torch.equal(found, score(outputs, targets))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_outputs_that_are_not_finite_show(tmp_path, broken):
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    outputs[2, 1] = broken
    mistakes = criterion_of("accuracy", "cross_entropy", tmp_path).terms(outputs, targets)
    assert mistakes.isnan().tolist() == [False, False, True, False]
    assert criterion_of("f1", "cross_entropy", tmp_path).terms(outputs, targets).isnan().all()
    outputs[2, 1] = -torch.inf  # a class that is ruled out
    assert criterion_of("f1", "cross_entropy", tmp_path).terms(outputs, targets).isfinite().all()


@pytest.mark.parametrize("name", ["accuracy", "f1"])
def test_figures_of_labels_are_refused_for_numbers(tmp_path, name):
    with pytest.raises(SpecError, match=f"objective: {name} is for labels") as caught:
        criterion_of(name, "mse", tmp_path)
    assert "objective: loss" in caught.value.hint and "python:MODULE:FUNCTION" in caught.value.hint


def test_more_is_better_of_what_a_function_returns(load):
    outputs, targets = torch.randn(6, 3).bfloat16(), torch.randint(0, 3, (6,))
    term = load("score")(outputs, targets)
    assert term.shape == (1,) and term.item() == -(outputs.argmax(1) == targets).double().mean()
    assert load("anything", "mse")(outputs, targets).item() == -2


@pytest.mark.parametrize(
    ("value", "number"),
    [("1", 1), ("-0.25", -0.25), ("True", 1), ("np.float32(0.5)", 0.5), ("np.int64(3)", 3), ("np.array(-1.5)", -1.5)]
    + [("torch.tensor(0.25)", 0.25), ("torch.tensor(7)", 7)],
)
def test_one_number_of_any_kind(score_of, value, number):
    assert score_of(value).tolist() == [-number]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("None", "a NoneType"),
        ("'0.5'", "a str"),
        ("[0.5]", "a list"),
        ("1j", "a complex"),
        ("torch.rand(4)", r"a Tensor \[4\]"),
        ("np.ones((1, 2))", r"a ndarray \[1, 2\]"),
        ("torch.tensor(1j)", "a Tensor"),
    ],
)
def test_what_is_not_one_number_is_refused(score_of, value, what):
    with pytest.raises(SpecError, match=f"^objective 'python:own:given' returns {what}, wanted one number$"):
        score_of(value)


@pytest.mark.parametrize("value", ["float('nan')", "np.float32('-inf')", "torch.tensor(torch.inf)"])
def test_a_number_that_is_not_finite_is_left_to_the_search(score_of, value):
    assert not score_of(value).isfinite().any()


def test_a_function_that_fails(load):
    with pytest.raises(
        SpecError, match="^objective 'python:my_code:fails' fails at .*my_code.py:8: RuntimeError: stack"
    ):
        load("fails")(torch.zeros(2, 2), torch.zeros(2))


@pytest.mark.parametrize(
    ("function", "message", "hint"),
    [
        ("lonely", "too many positional arguments", "it takes (outputs)"),
        ("loud", "missing a required argument: 'weights'", "it takes (outputs, targets, weights)"),
        ("scores", "has no function 'scores'", "did you mean 'score'?"),
    ],
)
def test_a_function_that_is_not_there_or_takes_something_else(load, function, message, hint):
    with pytest.raises(SpecError, match=message) as caught:
        load(function)
    assert caught.value.hint == hint


def test_a_module_that_is_not_there(tmp_path):
    with pytest.raises(SpecError, match="objective: there is no module 'nowhere'"):
        criterion_of("python:nowhere:score", "mse", tmp_path)
    with pytest.raises(SpecError, match="objective: found 'python:', wanted python:MODULE:FUNCTION"):
        criterion_of("python:", "mse", tmp_path)


def test_an_objective_is_checked_without_torch(tmp_path):
    (tmp_path / "my_code.py").write_text("def score(outputs, targets): return 0.0\n")
    code = """
import json, sys
from pathlib import Path
from glue_cli.search.criterion import criterion_of
for objective in ("loss", "accuracy", "f1", "python:my_code:score"):
    criterion_of(objective, "cross_entropy", Path("."))
print(json.dumps("torch" in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) is False, done.stderr
