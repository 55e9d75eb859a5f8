import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.data import SPLITS, splits
from glue_cli.data.classes import Classes
from glue_cli.data.expert_data import read_expert
from glue_cli.data.target import Target
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.progress import Noted
from glue_cli.running.device import Compute
from glue_cli.spec.schema import AugmentSpec

CPU = Compute(torch.device("cpu"))
PLAIN = AugmentSpec()


def rows(examples):
    """Return each example as a hashable; the noise makes them all different."""
    return [bytes(image.flatten().tolist()) for image in examples.dataset.inputs]


def test_the_target_s_parts(spec, run):
    found = Target(spec, run)
    assert {split: len(found[split]) for split in SPLITS} == {"train": 80, "val": 40, "test": 40}
    assert not set(rows(found["train"])) & set(rows(found["val"]))
    assert rows(Target(spec, run)["val"]) == rows(found["val"])


def test_only_the_split_that_is_asked_for_is_read(spec, run, data):
    (data / "test.safetensors").unlink()
    target = Target(spec, run)
    assert (len(target["train"]), len(target["val"])) == (80, 40)
    with pytest.raises(DataError, match="test.safetensors"):
        target["test"]


def test_a_split_is_read_once(spec, run, monkeypatch):
    reads, original = [], splits.read_dataset
    monkeypatch.setattr(
        splits, "read_dataset", lambda data, split, **where: reads.append(split) or original(data, split, **where)
    )
    target = Target(spec, run)
    assert reads == []
    for _ in range(2):
        assert all(target[split] is target[split] for split in SPLITS)
    assert sorted(reads) == ["test", "train", "val"]  # to see whether there is a val split


def test_a_val_split_on_disk_is_the_val_split(make_spec, run, data):
    save_file(
        {name: tensor[:7].clone() for name, tensor in load_file(data / "test.safetensors").items()},
        data / "val.safetensors",
    )
    spec = make_spec(data={"format": "safetensors", "root": "data", "target": {"train": 80}})
    found = Target(spec, run)
    assert (len(found["train"]), len(found["val"])) == (80, 7)
    cut = make_spec(data={"format": "safetensors", "root": "data", "target": {"train": 80, "val": 3}})
    part = Target(cut, run)
    assert len(set(rows(part["val"]))) == 3 and set(rows(part["val"])) < set(rows(found["val"]))
    assert rows(part["val"]) == rows(Target(cut, run)["val"])
    with pytest.raises(SpecError, match="data.target asks for 8 validation examples, but the val split has 7"):
        more = make_spec(data={"format": "safetensors", "root": "data", "target": {"val": 8}})
        Target(more, run)["val"]


def test_experts_never_see_the_target_and_do_not_depend_on_each_other(spec, make_spec, run):
    target = Target(spec, run)
    taken = {row for split in SPLITS for row in rows(target[split])}
    shares = [rows(read_expert(spec, expert, run)) for expert in range(3)]
    for share in shares:
        assert len(share) == len(set(share)) == 60 and not taken & set(share)
    assert shares[0] != shares[1]
    more = make_spec(experts={"count": 30, "size": 60, "dirichlet": 1.0})
    assert [rows(read_expert(more, expert, run)) for expert in range(3)] == shares
    assert rows(read_expert(make_spec(seed=1), 0, run)) != shares[0]


def test_a_share_that_is_short_of_a_class_is_reported(make_spec, run, events):
    spec = make_spec(experts={"count": 3, "size": 110, "dirichlet": 0.05})
    read_expert(spec, 0, run)
    notes = [event for event in events if isinstance(event, Noted) and "normalised" not in event.text]
    assert len(notes) == 1 and "too few for this expert's share" in notes[0].text


def test_members_are_normalised_as_the_target(make_spec, run):
    member = {"format": "safetensors", "root": "data"}
    target = {**member, "mean": [0.2], "std": [0.3], "target": {"train": 80, "val": 40}}
    own = {**member, "mean": [0.9], "std": [0.1]}
    spec = make_spec(data=target, experts={"members": [{"name": "a", "data": member}, {"name": "b", "data": own}]})
    assert (list(read_expert(spec, 0, run).mean), list(read_expert(spec, 0, run).std)) == ([0.2], [0.3])
    assert list(read_expert(spec, 1, run).mean) == [0.9]


def test_the_loss_has_to_fit_the_targets(make_spec, run):
    with pytest.raises(DataError, match="has labels, which loss: mse does not fit"):
        Target(make_spec(loss="mse"), run)["test"]


def test_members_of_a_format_with_the_same_defaults_are_left_as_they_are(make_spec, run, tmp_path):
    (tmp_path / "own.py").write_text("import torch\ndef data(split): return [(torch.ones(3), 0), (torch.zeros(3), 1)]")
    own = {"format": "python:own:data"}
    spec = make_spec(experts={"members": [{"name": "a", "data": own}]})
    assert (read_expert(spec, 0, run).mean, read_expert(spec, 0, run).std) == (None, None)


def test_data_of_the_user_s_own(make_spec, run, tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\ndef data(split, root): return None if split == 'val' else ["
        "(torch.full((1, 4, 4), i, dtype=torch.uint8), i % 4) for i in range(40)]\n"
        "def two(split): return data(split, 0)\n"
    )
    spec = make_spec(data={"format": "python:own:data", "root": "data", "target": {"train": 20, "val": 10}})
    found = Target(spec, run)
    assert [len(found[split]) for split in SPLITS] == [20, 10, 40]
    inputs, _ = found["test"].on(CPU).pick(torch.tensor([39]))
    torch.testing.assert_close(inputs, torch.full((1, 1, 4, 4), (39 / 255 - 0.5) / 0.5))
    with pytest.raises(DataError, match="'python:own:two' has labels, which loss: mse does not fit"):
        Target(make_spec(loss="mse", data={"format": "python:own:two"}), run)["test"]


def test_only_images_are_augmented(make_spec, run, data):
    numbers = {"inputs": torch.rand(200, 5), "labels": torch.arange(200) % 4}
    save_file(numbers, data / "train.safetensors")
    batches = Target(make_spec(), run)["train"].on(CPU)
    assert len(next(batches.epoch(8, 0, 1, PLAIN))[0]) == 8
    for augment in (AugmentSpec(flip=True), AugmentSpec(crop=1)):
        with pytest.raises(SpecError, match="augment crops and flips images, but the data are none"):
            next(batches.epoch(8, 0, 1, augment))


def test_batches_in_order(spec, run):
    examples = Target(spec, run)["test"]
    batches = examples.on(CPU)
    inputs, targets = (torch.cat(parts) for parts in zip(*batches.in_order(7), strict=True))
    wanted = (examples.dataset.inputs.float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(inputs, wanted)
    assert torch.equal(targets, examples.dataset.targets)
    assert batches.n_in_order == len(list(batches.in_order()))


def test_an_epoch_is_a_pure_function_of_seed_and_epoch(spec, run):
    batches = Target(spec, run)["train"].on(CPU)

    def epoch(seed, number, augment=PLAIN):
        return [inputs for inputs, _ in batches.epoch(30, seed, number, augment)]

    first = epoch(0, 1)
    assert [len(inputs) for inputs in first] == [30, 30, 20]
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(0, 1), strict=True))
    assert not torch.equal(first[0], epoch(0, 2)[0]) and not torch.equal(first[0], epoch(1, 1)[0])
    assert torch.cat(first).sum().item() == pytest.approx(torch.cat(epoch(0, 2)).sum().item(), rel=1e-4)
    augmented = epoch(0, 1, AugmentSpec(crop=2, flip=True))
    assert not torch.equal(first[0], augmented[0])
    assert torch.equal(augmented[0], epoch(0, 1, AugmentSpec(crop=2, flip=True))[0])


@pytest.mark.parametrize(
    ("n", "batch_size", "lengths"), [(21, 20, [20]), (22, 20, [20, 2]), (1, 20, [1]), (3, 1, [1] * 3)]
)
def test_a_single_example_is_no_batch_for_batchnorm(spec, run, n, batch_size, lengths):
    examples = Target(spec, run)["train"].subset(torch.arange(n))
    assert [len(targets) for _, targets in examples.on(CPU).epoch(batch_size, 0, 1, PLAIN)] == lengths


def test_minibatches_of_the_search(spec, run):
    examples = Target(spec, run)["train"].subset(torch.arange(50))
    batches = examples.on(CPU)
    steps = [batches.at_step(step, 20, 0)[0] for step in range(4)]
    assert [len(inputs) for inputs in steps] == [20] * 4  # the last 10 of an epoch are left out
    assert all(torch.equal(inputs, batches.at_step(step, 20, 0)[0]) for step, inputs in enumerate(steps))
    first_epoch = torch.cat(steps[:2]).flatten(1).unique(dim=0)
    assert len(first_epoch) == 40  # no example twice within an epoch
    assert len(batches.at_step(9, 500, 0)[0]) == 50


def test_a_minibatch_does_not_depend_on_those_before_it(spec, run):
    examples = Target(spec, run)["train"]
    batches = examples.on(CPU)
    asked = [(step, seed) for seed in (0, 1) for step in (0, 3, 4, 9, 1, 0)]  # epochs of 4 minibatches, back and forth
    for step, seed in asked:
        assert torch.equal(batches.at_step(step, 20, seed)[0], examples.on(CPU).at_step(step, 20, seed)[0])


def test_the_order_of_an_epoch_is_drawn_once(spec, run, monkeypatch):
    drawn, original = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **named: drawn.append(args) or original(*args, **named))
    batches = Target(spec, run)["train"].on(CPU)
    drawn.clear()
    for step in range(8):
        batches.at_step(step, 20, 0)
    assert drawn == [(80,), (80,)]


@pytest.mark.parametrize("batch_size", [7, 16, 40, 64])
def test_validation_batches_stand_for_all(spec, run, batch_size):
    val = Target(spec, run)["val"]
    order = val.dataset.labels.argsort()
    by_class = val.subset(order).on(CPU)  # as folders and tables have them
    batches = list(by_class.in_random_order(batch_size, seed=0))
    sizes = [len(targets) for _, targets in batches]
    assert len(batches) == by_class.n_in_random_order(batch_size)
    assert sum(sizes) == len(val) and max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    inputs = torch.cat([inputs for inputs, _ in batches]).flatten(1)
    in_order = torch.cat([inputs for inputs, _ in by_class.in_order()]).flatten(1)
    assert sorted(inputs.tolist()) == sorted(in_order.tolist()) and not torch.equal(inputs, in_order)
    again = torch.cat([inputs for inputs, _ in by_class.in_random_order(batch_size, seed=0)]).flatten(1)
    assert torch.equal(inputs, again)
    if batch_size == 16:
        assert len(set(batches[0][1].tolist())) > 1


# ---- classes

NAMES = ("ant", "bee", "cat", "dog")


def name_classes(data, split, names, kept=(0, 1, 2, 3)):
    tensors = load_file(data / f"{split}.safetensors")
    of_kept = torch.isin(tensors["labels"], torch.tensor(kept))
    tensors = {name: tensor[of_kept].clone() for name, tensor in tensors.items()}
    save_file(tensors, data / f"{split}.safetensors", {"class_names": json.dumps(names)})


def test_every_split_numbers_the_classes_that_are_asked_for(spec, run, data):
    for split in ("train", "test"):
        name_classes(data, split, NAMES)
    plain, turned = Target(spec, run), Target(spec, run, Classes(("x", *NAMES[::-1]), "the model", "hint"))
    for split in SPLITS:
        assert torch.equal(turned[split].dataset.labels, 4 - plain[split].dataset.labels)
        assert rows(turned[split]) == rows(plain[split]) and turned[split] is turned[split]
        assert turned[split].class_names == ["x", *NAMES[::-1]]
    with pytest.raises(DataError, match="'data' has classes that the model does not have: dog"):
        Target(spec, run, Classes(NAMES[:3], "the model", "hint"))["test"]


def test_a_val_split_of_its_own_is_renumbered_too(spec, run, data, make_spec):
    for split in ("train", "test"):
        name_classes(data, split, NAMES)
    (data / "val.safetensors").write_bytes((data / "test.safetensors").read_bytes())
    spec = make_spec(data={"format": "safetensors", "root": "data", "target": {"train": 80}})
    found = Target(spec, run, Classes(NAMES[::-1], "the model", "hint"))
    assert torch.equal(found["val"].dataset.labels, 3 - Target(spec, run)["val"].dataset.labels)


def test_a_class_that_a_split_lacks_is_a_warning(spec, run, data, events):
    name_classes(data, "train", NAMES)
    name_classes(data, "test", NAMES[::-1], kept=(1, 2))
    target = Target(spec, run)
    for _ in range(2):
        target["train"], target["test"]
    noted = [event for event in events if isinstance(event, Noted) and event.warning]
    assert noted == [Noted("test has no example of ant, dog (2 of 4 classes)", warning=True)]
