"""A trial of lr: what it tries, what it finds, and what the finetuning behind it does with that."""

import copy
import json
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from saved_state import through_files

from glue_cli.data.partition import draw_folds
from glue_cli.data.target import Target
from glue_cli.foundation.errors import NumericalError
from glue_cli.foundation.progress import Advanced, Finished, Noted, Started
from glue_cli.foundation.run import Run
from glue_cli.models.weights import initial_model
from glue_cli.plans.finetune import plan_finetune
from glue_cli.plans.outputs import Outputs
from glue_cli.results.finetune import FinetuneSteps
from glue_cli.results.record import as_object
from glue_cli.running.device import Compute
from glue_cli.spec.schema import FinetuneSpec
from glue_cli.workflows.evaluation import evaluate_model
from glue_cli.workflows.finetune import finetune
from glue_cli.workflows.finetuning import Finetuning
from glue_cli.workflows.learning_rates import LRS, Tried, best_of, next_to_try, plan_trial

CPU = Compute(torch.device("cpu"))
HANDFUL, MANY = {"train": 60, "val": 12}, {"train": 60, "val": 55}


@pytest.fixture
def make_spec(make_spec):
    """Build a spec of a small finetuning."""

    def make(target=HANDFUL, seed=0, **settings):
        data = {"format": "safetensors", "root": "data", "target": target}
        return make_spec(data=data, finetune={"epochs": 3, "batch_size": 16, **settings}, seed=seed)

    return make


def plan_of(spec, run):
    target = Target(spec, run)
    return plan_trial(spec.finetune, target["train"], target["val"], spec.seed)


def finetuning_of(spec, run, model=None):
    plan, target = plan_of(spec, run), Target(spec, run)
    judges = {"test": target["test"]} if plan.is_folded else {"val": target["val"]}
    return Finetuning(spec, plan, model or initial_model(spec), judges, compute=CPU, progress=run.progress)


def go(spec, run, output, **more):
    return as_object(finetune(plan_finetune(spec, None, Outputs(output), track_test=False), run))


def train_by_hand(model, examples, lr, epochs, held_out):
    """Train with plain torch; return the mean loss on held-out examples by epoch."""
    optimizer, batches, losses = torch.optim.Adam(model.parameters(), lr=lr), examples.on(CPU), []

    def judge():
        losses.append(evaluate_model(model, held_out.on(CPU), loss="cross_entropy", compute=CPU)["loss"])

    judge()
    for epoch in range(1, epochs + 1):
        model.train()
        for inputs, targets in batches.epoch(16, 0, epoch, FinetuneSpec.model_validate({}).augment):
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        judge()
    return losses


# ---- what is tried


@pytest.mark.parametrize(
    ("target", "settings", "n_lrs", "epochs", "n_splits", "n_examples"),
    [
        (HANDFUL, {}, len(LRS), 3, 5, 72),
        (HANDFUL, {"keep": "last"}, len(LRS), 3, 5, 72),
        (HANDFUL, {"lr": 0.01}, 1, 3, 5, 72),
        (HANDFUL, {"lr": 0.01, "keep": "last"}, 1, 0, 0, 60),
        (HANDFUL, {"preset": "paper"}, 1, 0, 0, 60),
        ({"train": 2, "val": 1}, {}, len(LRS), 3, 3, 3),
        (MANY, {"epochs": 80}, len(LRS), 27, 1, 60),  # 100 steps of 4 an epoch, rounded up
        (MANY, {"epochs": 200}, len(LRS), 50, 1, 60),
        (MANY, {"epochs": 10}, len(LRS), 10, 1, 60),
        (MANY, {"lr": 0.01}, 1, 0, 0, 60),
    ],
)
def test_what_a_trial_does(make_spec, run, target, settings, n_lrs, epochs, n_splits, n_examples):
    plan = plan_of(make_spec(target, **settings), run)
    assert (len(plan.lrs), plan.epochs, len(plan.splits)) == (n_lrs, epochs, n_splits)
    assert len(plan.examples) == n_examples and plan.is_folded == (n_splits > 1)
    for train, held_out in plan.splits:
        assert plan.is_folded is False or len(train) + len(held_out) == n_examples


def test_a_handful_beside_many_training_examples_is_a_split(make_spec, run, monkeypatch):
    monkeypatch.setattr("glue_cli.workflows.learning_rates._FOLDED", 71)
    plan = plan_of(make_spec(), run)
    assert len(plan.splits) == 1 and not plan.is_folded and len(plan.splits[0][1]) == 12


# ---- what is found


def walk(losses):
    """Return the numbers of the lr that are tried where they end at these losses, and the best of them."""
    tried = {}
    while (number := next_to_try(tried, len(losses), "last")) is not None:
        assert number not in tried
        tried[number] = Tried(
            0.1, {"val_loss": torch.tensor([5.0, losses[number]]), "val_loss_error": torch.zeros(2)}, 9
        )
    return set(tried), min(tried, key=lambda number: losses[number])


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=9, unique=True),
    st.integers(0, 8),
    st.sampled_from([100, math.inf]),
)
def test_the_walk_ends_in_the_valley_and_tries_no_more_than_leads_there(losses, place, diverged):
    least, *others = sorted(losses)
    place = min(place, len(others))
    left, right = others[:place][::-1], others[place:]
    valley = [*left, least, *right]
    if place > 1 and math.isinf(diverged):
        valley[: place // 2] = [diverged] * (place // 2)
    tried, best = walk(valley)
    assert best == place
    middle = (len(valley) - 1) // 2
    needed = {middle, middle + 1, place - 1, place, place + 1, *range(min(middle, place), max(middle, place) + 1)}
    assert tried == needed & set(range(len(valley)))


def test_a_training_that_diverges_at_the_middle_is_tried_with_smaller_lr():
    assert walk([math.inf] * 5 + [1.0]) == ({2, 3, 4, 5}, 5)


def test_folds_are_trained_as_by_plain_torch(make_spec, run):
    spec = make_spec(lr=0.02)
    finetuning, model = finetuning_of(spec, run), initial_model(spec)
    finetuning.run(lambda line: None)
    target = Target(spec, run)
    examples = target["train"].joined(target["val"])
    total = torch.zeros(4, dtype=torch.float64)
    for kept, held_out in draw_folds(72, 5, seed=0):
        parts = examples.subset(kept), examples.subset(held_out)
        losses = train_by_hand(copy.deepcopy(model), parts[0], 0.02, 3, parts[1])
        total += torch.tensor(losses, dtype=torch.float64) * len(held_out) / 72
    (tried,) = finetuning.tried
    torch.testing.assert_close(tried.figures["val_loss"], total, rtol=1e-5, atol=1e-6)
    assert [line["val_loss"] for line in finetuning.history] == tried.figures["val_loss"].tolist()
    train_by_hand(model, examples, 0.02, finetuning.account["kept"], examples)
    for name, tensor in finetuning.tensors().items():
        torch.testing.assert_close(tensor, model.state_dict()[name])


def test_the_lr_with_the_least_loss_is_taken_and_its_trial_is_how_its_training_begins(make_spec, run):
    finetuning = finetuning_of(make_spec(MANY, epochs=6), run)
    finetuning.run(lambda line: None)
    account = finetuning.account
    losses = {line.lr: line.val_loss for line in account["trial"]}
    assert losses[account["lr"]] == min(losses.values())
    numbers = [LRS.index(lr) for lr in losses]
    best = LRS.index(account["lr"])
    assert numbers == sorted(numbers) and {max(0, best - 1), min(len(LRS) - 1, best + 1)} <= {*numbers}
    chosen = next(one for one in finetuning.tried if one.lr == account["lr"])
    trial_epochs = len(chosen.figures["val_loss"])
    in_training = [line["val_loss"] for line in finetuning.history[:trial_epochs]]
    assert in_training == chosen.figures["val_loss"].tolist()
    assert account["steps"] == FinetuneSteps(trial=len(losses) * 4 * (trial_epochs - 1), training=4 * 6)
    assert account["folds"] is None


@pytest.mark.parametrize(
    ("keep", "losses", "best"),
    [
        ("best", [[2.0, 1.0, 3.0], [2.0, 1.9, 1.5]], 0),
        ("last", [[2.0, 1.0, 3.0], [2.0, 1.9, 1.5]], 1),
        ("best", [[2.0, math.nan, math.nan], [2.0, 1.9, 1.95]], 1),
        ("last", [[2.0, 1.0, math.nan], [2.0, 1.9, 9.0]], 1),
        ("best", [[2.0, 2.5, 3.0], [2.0, 2.1, 2.2]], 1),  # both keep the start; the second is nearer to it
        ("best", [[2.0, 1.85, 3.0], [2.0, 1.9, 1.95]], 0),  # within two standard errors both keep the start
        ("best", [[2.0, 2.5, 3.0], [2.0, 2.5, 2.5]], 0),
        ("best", [[math.nan, 1.0, 1.0], [math.nan, 0.5, math.inf]], 1),
    ],
)
def test_which_lr_is_best(keep, losses, best):
    errors = torch.tensor([0.0, 0.1, 0.1])
    tried = [
        Tried(lr, {"val_loss": torch.tensor(column), "val_loss_error": errors}, 9)
        for lr, column in zip((0.1, 0.01), losses, strict=True)
    ]
    assert best_of(tried, keep) is tried[best]


@pytest.mark.parametrize("target", [HANDFUL, MANY, {"train": 2, "val": 1}])
def test_the_error_is_that_of_the_difference_from_the_start_paired_by_example(make_spec, run, target):
    spec = make_spec(target, epochs=2, lr=0.02, keep="best")
    finetuning, start = finetuning_of(spec, run), initial_model(spec)
    finetuning.run(lambda line: None)
    plan = plan_of(spec, run)
    splits = plan.splits or [(plan.examples, Target(spec, run)["val"])]
    differences = []
    for train, held_out in splits:
        model = copy.deepcopy(start)
        before = losses_of(model, held_out)
        train_by_hand(model, train, 0.02, 2, held_out)
        differences.append(losses_of(model, held_out) - before)
    joined = torch.cat(differences)
    first, *_, last = finetuning.history
    assert first["val_loss_error"] == 0
    assert last["val_loss_error"] == pytest.approx((joined.std() / len(joined) ** 0.5).item(), rel=1e-3)
    assert last["val_loss"] - first["val_loss"] == pytest.approx(joined.mean().item(), rel=1e-3, abs=1e-6)


def losses_of(model, examples):
    """Return each example's loss, by plain torch."""
    ((inputs, targets),) = examples.on(CPU).in_order(len(examples))
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model.eval()(inputs), targets, reduction="none")


def test_an_lr_that_diverges_is_not_taken(make_spec, run, monkeypatch, tmp_path):
    monkeypatch.setattr("glue_cli.workflows.learning_rates.LRS", (1e30, 0.01))
    for target in (HANDFUL, MANY):
        result = go(make_spec(target), run, tmp_path / f"{target['val']}.safetensors")
        assert [line["lr"] for line in result["trial"]] == [1e30, 0.01] and result["lr"] == 0.01
        assert math.isinf(result["trial"][0]["val_loss"]) and result["trial"][1]["val_loss"] < 10


def test_an_lr_that_is_given_and_diverges(make_spec, run, tmp_path):
    with pytest.raises(NumericalError, match="diverges at each lr tried: 1e\\+30"):
        go(make_spec(lr=1e30), run, tmp_path / "f.safetensors")
    assert not (tmp_path / "f.safetensors").exists()


# ---- what comes of it


def test_a_start_that_is_better_than_every_epoch_is_kept_and_said(make_spec, run, events, tmp_path):
    trained = go(make_spec(MANY, epochs=12, lr=0.01), run, tmp_path / "a.safetensors")
    start = tmp_path / "a.safetensors"
    assert trained["kept"] > 0 and not any(isinstance(event, Noted) and event.warning for event in events)
    for target, keep in ((MANY, "best"), (HANDFUL, "best"), (MANY, "last")):
        events.clear()
        output = tmp_path / f"{keep}-{target['val']}.safetensors"
        plan = plan_finetune(make_spec(target, lr=0.9, keep=keep), start, Outputs(output), track_test=False)
        result = as_object(finetune(plan, run))
        (warning,) = [event.text for event in events if isinstance(event, Noted) and event.warning]
        tensors, before = load_file(output), load_file(start)
        unchanged = all(torch.equal(tensors[name], before[name]) for name in before)
        assert unchanged == (keep == "best") and result["kept"] == (0 if keep == "best" else 3)
        assert ("the start is kept" if keep == "best" else "no better than the start") in warning


def test_with_folds_all_examples_are_trained_on(make_spec, run, tmp_path):
    spec, output = make_spec(lr=0.01), tmp_path / "f.safetensors"
    history = tmp_path / "h.jsonl"
    plan = plan_finetune(spec, None, Outputs(output), track_test=True)
    result = as_object(finetune(plan, Run("cpu", history=history, progress=run.progress)))
    assert result["examples"] == 72 and result["folds"] == 5
    assert result["steps"] == {"trial": 5 * 3 * 4, "training": 3 * 5}
    assert all({"val_loss", "val_accuracy", "test_loss"} <= line.keys() for line in result["history"])
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["val_loss"] for line in lines] == [line["val_loss"] for line in result["history"]]
    best = min(result["history"], key=lambda line: line["val_loss"])
    assert result["kept"] == best["epoch"]


def test_progress_of_a_trial_is_a_task_for_each_lr(make_spec, run, events, tmp_path):
    result = go(make_spec(), run, tmp_path / "f.safetensors")
    started = [(i, event) for i, event in enumerate(events) if isinstance(event, Started)]
    *tries, (_, last) = started
    assert {event.task for _, event in tries} == {f"try lr {line['lr']:g}" for line in result["trial"]}
    assert last.task == "finetune"
    for (i, event), (end, _) in pairwise(started):
        done = [event.done for event in events[i:end] if isinstance(event, Advanced)]
        assert done == sorted(done) and done[-1] == event.total == 3 * 4 * 72
        assert sum(isinstance(event, Finished) for event in events[i:end]) == 1
    said = f"the trial of {len(tries)} lr made"
    assert any(said in event.text for event in events if isinstance(event, Noted))


# ---- stopping between two steps


@pytest.mark.parametrize("settings", [{"lr": 0.02}, {"lr": "auto"}, {"target": MANY}])
def test_a_finetuning_goes_on_from_any_state_bit_for_bit(make_spec, run, monkeypatch, settings):
    monkeypatch.setattr("glue_cli.workflows.learning_rates.LRS", (1e30, 0.02))
    spec = make_spec(**{"epochs": 2, **settings})
    whole, states = finetuning_of(spec, run), []
    whole.run(lambda line: None, lambda state: states.append(through_files(state())))
    wanted = {name: tensor.clone() for name, tensor in whole.tensors().items()}
    assert len(states) > 15
    for state in states[:: max(1, len(states) // 12)]:
        torch.manual_seed(99)  # another process
        again, lines = finetuning_of(spec, run), []
        again.restore(state)
        again.run(lines.append)
        assert again.history == whole.history and again.account == whole.account
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.tensors().items())
        assert lines == whole.history[len(whole.history) - len(lines) :]
