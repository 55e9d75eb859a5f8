import copy
import itertools
import math
import random

import pytest
import torch
from saved_state import through_files
from torch import nn

from glue_cli.data.target import Target
from glue_cli.foundation.errors import NumericalError, SpecError
from glue_cli.foundation.progress import Advanced, Finished, Started
from glue_cli.models.weights import initial_model
from glue_cli.running.device import Compute
from glue_cli.workflows.evaluation import evaluate_model
from glue_cli.workflows.training import Training

CPU = Compute(torch.device("cpu"))


def training_of(spec, run, model, **more):
    batches = Target(spec, run)["train"].on(CPU)
    arguments = {"loss": spec.loss, "compute": CPU, "seed": 0, "task": "fit", "progress": run.progress} | more
    return Training(model, batches, spec.train, **arguments)


def fit(spec, run, model=None, write=lambda line: None):
    model = model or initial_model(spec)
    training_of(spec, run, model).run(write)
    return model


def test_training_learns_and_repeats_itself(spec, run):
    losses = []
    first = fit(spec, run, write=losses.append)
    second = fit(spec, run)
    assert [line["epoch"] for line in losses] == [1, 2] and losses[1]["train_loss"] < losses[0]["train_loss"]
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_training_is_plain_adam(spec, run):
    start = initial_model(spec)
    trained = fit(spec, run, copy.deepcopy(start))
    optimizer = torch.optim.Adam(start.parameters(), lr=spec.train.lr)
    batches = Target(spec, run)["train"].on(CPU)
    for epoch in (1, 2):
        for inputs, targets in batches.epoch(spec.train.batch_size, 0, epoch, spec.train.augment):
            loss = torch.nn.functional.cross_entropy(start.train()(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for a, b in zip(trained.state_dict().values(), start.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_embedding_with_sparse_gradients_is_trained_like_a_dense_one(spec, run):
    class Coded(nn.Module):
        def __init__(self, *, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.codes, self.head = nn.Embedding(256, 2, sparse=sparse), nn.LazyLinear(10)
            self.head(torch.zeros(1, 2 * 8 * 8))

        def forward(self, images):
            return self.head(self.codes((images[:, :1] * 10).long().clamp(0, 255)).flatten(1))

    trained = [fit(spec, run, Coded(sparse=sparse)).state_dict() for sparse in (True, False)]
    assert all(torch.equal(*pair) for pair in zip(*(state.values() for state in trained), strict=True))


def test_layers_that_merge_in_eval_mode_are_kept_as_they_are_trained(spec, run):
    class Merging(nn.Linear):
        update = merged = 0.0

        def train(self, mode=True):
            self.weight.data += (0.0 if mode else 1.0) - self.merged
            self.merged = 0.0 if mode else 1.0
            return super().train(mode)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Merging(64, 10))
    training = training_of(
        spec, run, model, measure=lambda epoch: model.eval() and {"val_loss": -epoch}, keeps_best=True
    )
    training.run(lambda line: None)
    assert training.kept == 2 and training.best_tensors()["1.weight"].mean().abs() < 0.2


def test_progress_counts_every_example(spec, run, events):
    fit(spec, run)
    begun = [event for event in events if isinstance(event, Started)]
    assert begun == [Started("fit", 160, "examples")]
    done = [event.done for event in events if isinstance(event, Advanced)]
    assert done == sorted(done) and done[-1] == 160
    assert isinstance(events[-1], Finished)
    assert all(set(event.figures) == {"epoch", "loss"} for event in events if isinstance(event, Advanced))


@pytest.mark.parametrize(("lr", "epochs", "batch_size"), [(1e30, 3, 20), (1e39, 1, 80)])
def test_divergence_is_found_even_after_the_last_step(make_spec, run, lr, epochs, batch_size):
    spec = make_spec(train={"epochs": epochs, "batch_size": batch_size, "lr": lr})
    with pytest.raises(NumericalError, match="'fit'"):
        fit(spec, run)


def test_evaluation_is_that_of_the_whole_set_at_once_and_leaves_the_model_as_it_is(spec, run):
    model = fit(spec, run)
    before = copy.deepcopy(model.state_dict())
    examples = Target(spec, run)["val"]
    figures = evaluate_model(model, examples.on(CPU), loss=spec.loss, compute=CPU)
    inputs, targets = next(examples.on(CPU).in_order(1000))
    outputs = model.eval()(inputs)
    assert figures["loss"] == pytest.approx(torch.nn.functional.cross_entropy(outputs, targets).item(), rel=1e-5)
    assert figures["accuracy"] == (outputs.argmax(1) == targets).float().mean().item()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize("train_section", [{"batch_size": 1}, {"batch_size": 20}])
def test_a_batch_that_is_too_small_for_batchnorm(make_spec, run, train_section):
    n = 80 if train_section["batch_size"] == 1 else 1
    spec = make_spec(
        model={"arch": "mobilenet_v2", "args": {"num_classes": 4, "in_channels": 1}},
        data={"format": "safetensors", "root": "data", "target": {"train": n, "val": 40}},
        train={"epochs": 1, **train_section},
    )
    with pytest.raises(SpecError, match="a batch of 1"):
        fit(spec, run)


# ---- stopping between two steps


def wavering_net():
    """A net whose steps depend on the random state and on running statistics."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.LazyLinear(4)
    )


@pytest.fixture
def train_wavering(make_spec, run):
    """Train a small net from a state, if one is given; return what comes of it and all states on the way."""
    augment = {"flip": True, "crop": 1}
    spec = make_spec(train={"epochs": 3, "batch_size": 30, "lr": 0.02, "augment": augment})
    inputs, _ = next(Target(spec, run)["train"].on(CPU).in_order(2))

    def train(state=None, is_measured=True):
        model, states, lines = wavering_net(), [], []
        model(inputs)  # which makes the lazy layer
        if state is not None:
            torch.manual_seed(1234)  # another process
        figures = {"measure": lambda epoch: {"val_loss": math.cos(sum(p.sum().item() for p in model.parameters()))}}
        training = training_of(spec, run, model, **(figures | {"keeps_best": True} if is_measured else {}))
        if state is not None:
            training.restore(state)
        n_lines = len(training.history)
        training.run(lines.append, lambda state: states.append(through_files(state())))
        assert lines == training.history[n_lines:]
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return (tensors, training.best_tensors(), training.history, training.state()), states

    return train


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    return all(map(equal, one, other)) if isinstance(one, tuple) else one == other


@pytest.mark.parametrize("is_measured", [False, True])
def test_a_training_goes_on_from_any_state_bit_for_bit(train_wavering, is_measured):
    whole, states = train_wavering(is_measured=is_measured)
    assert len(states) == 3 * (3 + 1) + is_measured  # 3 steps of 80 examples and the end of an epoch; the start
    for n, state in enumerate(states):
        again, later = train_wavering(state, is_measured)
        assert equal(again, whole), f"from state {n}"
        assert equal(tuple(later), tuple(states[n + 1 :]))


def test_dropout_and_batch_statistics_are_part_of_the_state(train_wavering):
    """So that the test above could fail."""
    whole, states = train_wavering()
    state = states[2]
    assert 0 < state["steps_made"] < 3 and state["optimizer.parameters.0.step"].item() == state["steps_made"]
    random = {"random.cpu": torch.Generator().manual_seed(5).get_state()}
    mean = {"model.1.running_mean": state["model.1.running_mean"] + 1}
    moments = {"optimizer.parameters.0.exp_avg": -state["optimizer.parameters.0.exp_avg"]}
    for change in (random, mean, moments, {"steps_made": 2 if state["steps_made"] == 1 else 1}):
        assert not equal(train_wavering(state | change)[0], whole), change.keys()


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([9.0, 3.0, 2.0, 5.0], 2),
        ([9.0, 3.0, 2.0, 2.0], 2),
        ([0.0, 3.0, 2.0, 2.0], 0),  # the start
        ([2.0, 3.0, 2.0, 2.0], 0),
        ([9.0, math.nan, 2.0, 5.0], 2),  # the first is no number
        ([9.0, 3.0, math.nan, 5.0], 1),
        ([9.0, math.nan, math.inf, 4.0], 3),
        ([math.nan, math.nan, math.nan, math.nan], 0),
        ([math.nan, math.inf, math.nan, 9.0], 3),
    ],
)
def test_the_epoch_with_the_least_validation_loss_is_kept(make_spec, run, losses, best):
    spec = make_spec(train={"epochs": 3, "batch_size": 80, "lr": 0.02})
    figures, after, model = itertools.cycle(losses), [], initial_model(spec)

    def measure(epoch):
        assert epoch == len(after)
        after.append(copy.deepcopy(model.state_dict()))
        return {"val_loss": next(figures)}

    training = training_of(spec, run, model, measure=measure, keeps_best=True)
    training.run(lambda line: None)
    assert training.kept == best and training.n_steps == 3
    assert equal(dict(training.best_tensors()), dict(after[best]))
    assert sum(equal(dict(training.best_tensors()), dict(tensors)) for tensors in after) == 1


def test_draws_of_python_and_numpy_repeat_themselves(spec, run):
    numpy = pytest.importorskip("numpy")

    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(64, 4)

        def forward(self, images):
            return self.last(images.flatten(1)) * (random.random() + numpy.random.rand())

    start, fitted = Drawing(), []
    for _ in range(2):
        random.random()
        fitted.append(fit(spec, run, copy.deepcopy(start)))
    assert torch.equal(fitted[0].last.weight, fitted[1].last.weight)


def test_complex_weights_are_trained(spec, run):
    class Waves(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Parameter(torch.randn(64, 4, dtype=torch.complex64) / 8)

        def forward(self, images):
            return (images.flatten(1).to(torch.complex64) @ self.last).abs()

    losses = []
    fit(spec, run, Waves(), write=losses.append)
    assert losses[1]["train_loss"] < losses[0]["train_loss"]
