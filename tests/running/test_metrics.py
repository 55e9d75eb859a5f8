import subprocess
import sys

import pytest

from glue_cli.foundation.errors import UsageError
from glue_cli.running.metrics import BARS, METRICS, load_metrics, usual_metrics


@pytest.mark.parametrize("loss", METRICS)
def test_every_metric_is_there(torchmetrics, loss):
    made = load_metrics(loss, [*METRICS[loss]])
    assert list(made) == list(METRICS[loss]) and all(issubclass(one, torchmetrics.Metric) for one in made.values())


def test_more_is_better_of_what_can_have_a_bar(torchmetrics):
    for loss, names in BARS.items():
        known = load_metrics(loss, [name for name in names if name in METRICS[loss]])
        assert known and all(metric.higher_is_better for metric in known.values())


def test_only_a_regression_has_metrics_unasked(torchmetrics):
    assert list(usual_metrics("mse")) == ["mae", "r2"] and usual_metrics("cross_entropy") == {}


MISSING = ModuleNotFoundError("No module named 'torchmetrics'", name="torchmetrics")
HALTED = ModuleNotFoundError("import of torchvision halted", name="torchvision")


@pytest.mark.parametrize(
    ("error", "why", "hint"),
    [
        (MISSING, "is not installed", "pip install 'glue-cli[metrics]'"),
        (
            HALTED,
            "cannot be imported: import of torchvision halted",
            "install the torchvision for this torch, or none",
        ),
        (RuntimeError("no nms"), "cannot be imported: no nms", "install the torchvision for this torch, or none"),
    ],
)
def test_without_torchmetrics(monkeypatch, error, why, hint):
    def refuse(name):
        raise error

    monkeypatch.setattr("glue_cli.running.metrics.import_with_torchvision", refuse)
    with pytest.raises(UsageError, match=f"for f1, auroc wanted torchmetrics, which {why}") as caught:
        load_metrics("cross_entropy", ["f1", "auroc"])
    assert caught.value.hint == hint
    assert usual_metrics("mse") == {} and load_metrics("cross_entropy", []) == {}


def test_metrics_are_there_whatever_torch_a_torchvision_beside_them_was_built_for():
    pytest.importorskip("torchmetrics")
    code = "from glue_cli.running.metrics import usual_metrics; print(*usual_metrics('mse'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout.split() == ["mae", "r2"], found.stderr
