"""Digests that are remembered for as long as files do not change, and never believed otherwise."""

import hashlib
import os
from dataclasses import replace

import pytest

from glue_cli.checkpoints import digests as digests_module
from glue_cli.checkpoints.digests import Digests, identify
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import Stamp
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

KEY, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def settled(monkeypatch):
    """Let no file count as just changed."""
    monkeypatch.setattr(digests_module, "_TICK_NS", 0)


def test_files_are_told_apart_by_order_inode_size_and_times(tmp_path, settled):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(b"same")
        os.utime(path, ns=(10**18, 10**18))
    found = {identify([one]), identify([two]), identify([one, two]), identify([two, one])}
    assert len(found) == 4 and None not in found
    assert identify([one]) in found
    before = identify([one])
    one.write_bytes(b"SAME")
    os.utime(one, ns=(10**18, 10**18))  # the modification time is set back, the change time cannot be
    assert identify([one]) != before
    assert identify([one, tmp_path / "missing"]) is None


def test_a_file_that_has_just_changed_has_no_identity(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"new")
    assert identify([path]) is None
    os.utime(path, ns=(10**18, 10**18))
    assert identify([path]) is None  # its change time is of just now


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-1],
        lambda text: text.replace(KEY.encode(), OTHER.encode()),
        lambda text: b"",
        lambda text: b"\xff" + text,
        lambda text: hashlib.sha256(b"[]").hexdigest().encode() + b"\n[]",
        lambda text: hashlib.sha256(b'{"a": "b"}').hexdigest().encode() + b'\n{"a": "b"}',
    ],
)
def test_a_damaged_memory_is_not_believed(tmp_path, damage):
    Digests(tmp_path).add({KEY: OTHER})
    assert Digests(tmp_path).read() == {KEY: OTHER}
    file = tmp_path / "digests"
    file.write_bytes(damage(file.read_bytes()))
    assert Digests(tmp_path).read() == {}
    Digests(tmp_path).add({OTHER: KEY})
    assert Digests(tmp_path).read() == {OTHER: KEY}


def test_the_oldest_are_forgotten_first(tmp_path, monkeypatch):
    monkeypatch.setattr(digests_module, "_MOST", 3)
    keys = [f"{number:064x}" for number in range(4)]
    for key in (*keys[:3], keys[0], keys[3]):
        Digests(tmp_path).add({key: KEY})
    assert list(Digests(tmp_path).read()) == [keys[2], keys[0], keys[3]]


def test_without_a_folder_nothing_is_remembered():
    Digests(None).add({KEY: OTHER})
    assert Digests(None).read() == {}


def test_a_remembered_digest_is_of_these_very_bytes(golden, tmp_path, settled):
    path = tmp_path / "expert.safetensors"
    path.write_bytes((golden / "expert-0.safetensors").read_bytes())
    expert = read_checkpoint(path)
    first = StreamedHash(expert)
    digest = first.finish()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    remembered = first.worth_remembering()
    again = StreamedHash(replace(expert, files=(tmp_path / "expert.safetensors",)), remembered=remembered)
    assert again.is_remembered and again.finish() == digest and again.worth_remembering() == {}
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    changed = StreamedHash(read_checkpoint(path), remembered=remembered)
    assert not changed.is_remembered
    assert changed.finish() == hashlib.sha256(path.read_bytes()).hexdigest() != digest


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(golden, tmp_path, settled):
    path = tmp_path / "expert.safetensors"
    path.write_bytes((golden / "expert-0.safetensors").read_bytes())
    streamed = StreamedHash(read_checkpoint(path))
    streamed.finish()
    os.utime(path)
    assert streamed.worth_remembering() == {}
    with pytest.raises(CheckpointError, match="changed while it was read"):
        StreamedHash(replace(read_checkpoint(path), stamps=(Stamp(1, 1, 1),))).finish()
