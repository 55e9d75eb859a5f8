import copy

import pytest
import torch

from glue_cli.data.target import Target
from glue_cli.foundation.errors import NumericalError, SpecError
from glue_cli.foundation.progress import Advanced, Finished, Started
from glue_cli.models.weights import initial_model
from glue_cli.running.device import Compute
from glue_cli.workflows.evaluation import evaluate_model
from glue_cli.workflows.training import train

CPU = Compute(torch.device("cpu"))


def fit(spec, run, model=None, settings=None, on_epoch=lambda epoch, loss: None):
    model = model or initial_model(spec)
    batches = Target(spec, run)["train"].on(CPU)
    settings = settings or spec.train
    train(model, batches, settings, loss=spec.loss, compute=CPU, seed=0, task="fit", run=run, on_epoch=on_epoch)
    return model


def test_training_learns_and_repeats_itself(spec, run):
    losses = []
    first = fit(spec, run, on_epoch=lambda epoch, loss: losses.append((epoch, loss)))
    second = fit(spec, run)
    assert [epoch for epoch, _ in losses] == [1, 2] and losses[1][1] < losses[0][1]
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
