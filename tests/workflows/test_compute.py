"""Which precision a search computes with, from timings and from whether bfloat16 tells its experts apart."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from glue_cli.foundation.run import Run
from glue_cli.running.device import Compute
from glue_cli.search.reach import Reach
from glue_cli.workflows import compute as compute_module

CPU = torch.device("cpu")
FINE = Reach(torch.tensor([0.5, 12.0]), rounding=0.004, is_short=False)


class Data:
    """Stands in for a target's examples."""

    def __len__(self):
        return 4

    def subset(self, indices):
        return self

    def on(self, compute):
        return self

    def in_order(self):
        yield "batch", None


@pytest.fixture
def choose(monkeypatch):
    def choose(precision, *, fastest="bf16", reach=FINE, n_experts=2):
        """Return what was chosen, and what was said: texts and whether they are warnings."""
        timed = fastest if precision == "auto" else precision
        monkeypatch.setattr(compute_module, "_choose", lambda *_: Compute(CPU, timed))
        monkeypatch.setattr(compute_module, "measure_reach", lambda blends, batch: reach)
        said = []
        run = replace(Run(), progress=lambda event: said.append((event.text, event.warning)))
        spec = SimpleNamespace(precision=precision, mix=SimpleNamespace(batch_size=4))
        blends = SimpleNamespace(n_groups=1, n_experts=n_experts, model=None, is_resident=True)
        compute, found = compute_module.blending_compute(spec, blends, Data(), run)
        return compute.precision, found, said

    return choose


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_bfloat16_is_taken_with_the_reach_of_the_experts(choose, precision):
    says = (
        "bfloat16 rounds by 0.4 % of the outputs' spread: changes are measured at up to 12 times the way to an expert"
    )
    chosen, reach, said = choose(precision)
    assert (chosen, said) == ("bf16", [(says, False)])
    assert reach.radii.tolist() == [0.5, 12.0] and reach.is_fine


@pytest.mark.parametrize(
    "reach",
    [replace(FINE, rounding=0.2), replace(FINE, is_short=True), replace(FINE, rounding=float("nan"))],
)
def test_experts_that_bfloat16_does_not_tell_apart_are_searched_in_float32(choose, reach):
    precision, found, ((text, is_warning),) = choose("auto", reach=reach)
    assert (precision, found, is_warning) == ("fp32", None, False)
    assert text.startswith("precision fp32: bfloat16 rounds by")
    precision, found, ((text, is_warning),) = choose("bf16", reach=reach)
    assert (precision, found.is_fine, is_warning) == ("bf16", False, True)
    assert text.endswith("--precision fp32 tells them apart")


@pytest.mark.parametrize("chosen", [("fp32", {}), ("auto", {"fastest": "fp32"}), ("bf16", {"n_experts": 1})])
def test_nothing_is_measured_where_any_move_shows_or_there_is_none(choose, chosen):
    precision, options = chosen
    assert choose(precision, **options)[1:] == (None, [])
