"""Which passes are captured and when they are replayed, by a capture on the CPU; and on a GPU, what a graph gives."""

import gc
import weakref

import pytest
import torch
from small_nets import ALPHAS, Noisy, conv_net, normed
from torch import nn

from glue_cli.running.cuda_graphs import CudaCapture, GraphedForwards
from glue_cli.running.device import Compute
from glue_cli.search import objective as objective_module


class Scaling(nn.Module):
    """Scales its input, and counts how often it is asked to."""

    def __init__(self):
        super().__init__()
        self.scale, self.n_calls = nn.Parameter(torch.tensor(2.0), requires_grad=False), 0

    def forward(self, x, mask=1.0):
        self.n_calls += 1
        return self.scale * x * mask


def capture_on_cpu(forward):
    """As a GPU's capture does: later runs read and write the same memory, without a look at the Python code."""
    outputs = forward()
    return lambda: outputs.copy_(forward()), outputs


@pytest.fixture
def graphed():
    forwards = GraphedForwards(capture_on_cpu)
    return torch.no_grad()(forwards)


def inputs_of(number, n=3):
    return torch.arange(float(n)) + number


def test_outputs_are_those_of_the_model_however_often_it_is_asked(graphed):
    model = Scaling()
    found = [graphed(model, inputs_of(number)) for number in range(6)]
    for number, outputs in enumerate(found):  # an earlier one is not overwritten by a later one
        assert torch.equal(outputs, 2 * inputs_of(number))
    model.scale.fill_(5.0)
    assert torch.equal(graphed(model, inputs_of(1)), 5 * inputs_of(1))


def test_named_inputs_are_replayed_by_name(graphed):
    model, mask = Scaling(), torch.tensor([1.0, 0, 1])
    for number in range(5):
        outputs = graphed(model, {"mask": mask * number, "x": inputs_of(number)})
        assert torch.equal(outputs, 2 * mask * number * inputs_of(number))


def test_each_shape_of_inputs_has_a_graph_of_its_own(graphed):
    model = Scaling()
    for number in range(8):
        inputs = inputs_of(number, n=3 + number % 2)
        assert torch.equal(graphed(model, inputs), 2 * inputs)


def test_a_pass_is_captured_when_it_comes_again():
    captured = []
    forwards = torch.no_grad()(GraphedForwards(lambda forward: captured.append(forward) or capture_on_cpu(forward)))
    model, other = Scaling(), Scaling()
    forwards(model, inputs_of(0))
    forwards(other, inputs_of(0))
    forwards(model, inputs_of(0, n=4))
    assert not captured
    for number in range(4):
        forwards(model, inputs_of(number))
    assert len(captured) == 1


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted when stream is capturing"), None])
def test_what_cannot_be_captured_or_comes_out_otherwise_runs_as_ever(error):
    attempts = []

    def capture(forward):
        attempts.append(forward)
        if error:
            raise error
        return lambda: None, torch.zeros(3)  # a replay that gives something else

    forwards, model = torch.no_grad()(GraphedForwards(capture)), Scaling()
    for number in range(5):
        assert torch.equal(forwards(model, inputs_of(number)), 2 * inputs_of(number))
    assert len(attempts) == 1 and model.n_calls == 5


def test_outputs_that_are_not_a_number_are_no_ground_for_a_graph(graphed):
    model = Scaling()
    for _ in range(3):
        assert graphed(model, torch.full((3,), torch.nan)).isnan().all()
    assert torch.equal(graphed(model, inputs_of(1)), 2 * inputs_of(1))


def test_with_gradients_a_pass_runs_as_ever():
    forwards, model = GraphedForwards(capture_on_cpu), Scaling()
    for number in range(4):
        inputs = inputs_of(number).requires_grad_()
        forwards(model, inputs).sum().backward()
        assert torch.equal(inputs.grad, torch.full((3,), 2.0))


def test_a_graph_goes_with_its_model():
    forwards, model, kept = GraphedForwards(lambda forward: (kept, forward())), Scaling(), lambda: None
    with torch.no_grad():
        for number in range(3):
            forwards(model, inputs_of(number))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.fixture
def replayed(monkeypatch):
    """The graphs that were replayed."""
    graphs = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: graphs.append(graph) or replay(graph))
    return graphs


@pytest.mark.cuda
@pytest.mark.parametrize("make", [conv_net, normed])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_probes_of_a_gpu_are_replayed_and_stay_what_they_are(
    objective_of, cuda, make, precision, replayed, monkeypatch
):
    graphed, _, _ = objective_of(make, compute=Compute(cuda, precision, channels_last=True))
    found = torch.stack([graphed.probe_losses(ALPHAS[:2].roll(step, 2), step) for step in range(6)])
    assert len(replayed) == 2 * 5  # the capture's own, and four steps more, of either copy
    monkeypatch.setattr(objective_module, "_GRAPHED_COLUMNS", 0)
    eager, _, _ = objective_of(make, compute=Compute(cuda, precision, channels_last=True))
    wanted = torch.stack([eager.probe_losses(ALPHAS[:2].roll(step, 2), step) for step in range(6)])
    assert len(replayed) == 2 * 5 and wanted.std() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.cuda
def test_a_model_that_draws_at_random_repeats_itself_on_a_gpu(objective_of, cuda):
    objective, _, _ = objective_of(Noisy, compute=Compute(cuda))
    first, *others = [objective.probe_losses(ALPHAS[:1], 3) for _ in range(5)]
    assert all(torch.equal(first, other) for other in others)


class Waiting(Scaling):
    """Looks at its outputs on the way."""

    def forward(self, x):
        outputs = super().forward(x)
        return outputs if outputs.sum().item() > 0 else -outputs


@pytest.mark.cuda
def test_a_model_that_waits_for_the_gpu_runs_as_ever_and_so_do_others_after_it(cuda):
    forwards = torch.no_grad()(GraphedForwards(CudaCapture(cuda)))
    for model in (Waiting().to(cuda), Scaling().to(cuda)):
        for sign in (1, -1, 1, -1):
            inputs = sign * (inputs_of(0).to(cuda) + 1)
            wanted = 2 * inputs.abs() if isinstance(model, Waiting) else 2 * inputs
            assert torch.equal(forwards(model, inputs), wanted)
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.rand(3, device=cuda)  # the generator is none the worse for it
