import json
import math

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.run_state import (
    SavedState,
    differences,
    fingerprint_of_checkpoint,
    fingerprint_of_files,
    fingerprint_of_tensors,
    flat,
    forget_run,
    holding_state,
    read_state,
    state_file,
    write_state,
)
from glue_cli.foundation.errors import CheckpointError, ResourceError

STATE = {
    "step": 3,
    "loss": 0.1,
    "stage": "race",
    "runner_up": None,
    "history.0.val_loss": math.nan,
    "history.1.val_loss": math.inf,
    "random.cpu": torch.get_rng_state(),
    "drawn": torch.empty(0, dtype=torch.int64),
    "model.0.weight": torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "best_loss": torch.tensor(math.inf, dtype=torch.float64),
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and (a == b or a != a and b != b)


def test_a_state_comes_back_as_it_was(tmp_path):
    file = state_file(tmp_path / "p.safetensors")
    write_state(file, SavedState(STATE, {"seed": 3}, "bf16", 2, 17, 5))
    found = read_state(file)
    assert found.state.keys() == STATE.keys()
    assert all(same(found.state[name], value) for name, value in STATE.items())
    assert (found.identity, found.precision, found.threads, found.history_bytes) == ({"seed": 3}, "bf16", 2, 17)
    assert [path.name for path in tmp_path.iterdir()] == [".p.safetensors.state"]


def test_a_state_lies_hidden_beside_its_output(tmp_path):
    assert state_file(tmp_path / "out" / "a.safetensors") == tmp_path / "out" / ".a.safetensors.state"
    (tmp_path / ".a.safetensors.state").touch()
    assert not list(tmp_path.glob("[!.]*"))


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_what_is_no_state(tmp_path, content):
    file = tmp_path / ".p.safetensors.state"
    if content is None:
        save_file({"a": torch.zeros(2)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\.p\.safetensors\.state"):
        read_state(file)


def test_a_state_of_another_glue_is_not_believed(tmp_path):
    file = tmp_path / ".p.safetensors.state"
    save_file({"a": torch.zeros(2)}, file, {"glue": json.dumps({"kind": "state", "values": {}, "identity": {}})})
    with pytest.raises(CheckpointError, match="no state of a run of this glue") as caught:
        read_state(file)
    assert caught.value.hint == "remove it, and begin again"


def test_one_process_holds_a_state(tmp_path):
    output = tmp_path / "new" / "p.safetensors"
    with holding_state(output), pytest.raises(ResourceError, match="another process"), holding_state(output):
        raise AssertionError
    assert not (tmp_path / "new").exists()
    with holding_state(output) as file:
        file.write_bytes(b"x")
    assert file.exists() and len(list((tmp_path / "new").iterdir())) == 1


def test_differences_are_named():
    saved, wanted = flat({"seed": 1, "mix": {"lr": 0.1, "groups": {}}}), flat({"seed": 2, "mix": {"lr": 0.1, "mu": 1}})
    assert differences(saved, wanted) == [
        "mix.groups: {} there, nothing here",
        "mix.mu: nothing there, 1 here",
        "seed: 1 there, 2 here",
    ]
    assert differences(saved, dict(saved)) == []


def test_fingerprints_see_every_change(tmp_path):
    numbers = torch.arange(10, dtype=torch.int32)
    first = fingerprint_of_tensors([numbers])
    changed = [numbers.clone() for _ in range(10)]
    for k, one in enumerate(changed):
        one[k] = 99
    others = [[numbers.view(2, 5)], [numbers.float()], [numbers[:9]], [numbers, numbers[:0]], *([c] for c in changed)]
    assert len({first, *map(fingerprint_of_tensors, others)}) == 1 + len(others)
    assert fingerprint_of_tensors([numbers.clone()]) == first
    found = set()
    for content in (b"0123", b"x123", b"0x23", b"012x", b"01234"):
        (tmp_path / "code").write_bytes(content)
        found.add(fingerprint_of_files([tmp_path / "code"]))
    assert len(found) == 5


@pytest.mark.parametrize("name", ["first", "middle", "tiny", "last"])
def test_a_large_checkpoint_is_told_from_one_with_another_tensor(tmp_path, monkeypatch, name):
    """As where only layers in the middle were trained, and the header and both ends are the same."""
    monkeypatch.setattr("glue_cli.checkpoints.run_state._END", 1000)
    tensors = {"first": torch.rand(9000), "middle": torch.rand(9000), "tiny": torch.rand(3), "last": torch.rand(9000)}
    found = []
    for k in range(2):
        save_file(tensors, tmp_path / f"{k}.safetensors")
        tensors[name] = tensors[name] + 1
        found.append(fingerprint_of_checkpoint(read_checkpoint(tmp_path / f"{k}.safetensors")))
    assert found[0] != found[1]
    assert found[1] == fingerprint_of_checkpoint(read_checkpoint(tmp_path / "1.safetensors"))


LEFT = (".p.safetensors.state", ".p.safetensors.state.lock", ".glue-0123456789abcdef.tmp")


def test_what_a_killed_run_has_left_is_forgotten(tmp_path):
    """A kill may come between the removal of the state and that of its lock."""
    for name in LEFT[1:], LEFT:
        for left in name:
            (tmp_path / left).touch()
        forget_run(tmp_path / "p.safetensors")
        assert not list(tmp_path.iterdir())


def test_what_a_living_process_holds_is_not_forgotten(tmp_path):
    output = tmp_path / "p.safetensors"
    with holding_state(output) as file:
        file.touch()
        forget_run(output)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(LEFT[:2])


def test_a_folder_that_is_gone_has_nothing_to_forget(tmp_path):
    forget_run(tmp_path / "gone" / "p.safetensors")
    assert not list(tmp_path.iterdir())
