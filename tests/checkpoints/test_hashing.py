"""Hashes that are begun ahead of the blend."""

import errno
import hashlib
import os
import sys
from threading import Event

import pytest
import torch

from glue_cli.checkpoints import files, hashing
from glue_cli.checkpoints.hashing import StreamedHash, hashing_ahead
from glue_cli.foundation.errors import CheckpointError, ResourceError


class After:
    """Enough after `n` questions."""

    def __init__(self, n):
        self.n = n

    def is_set(self):
        self.n -= 1
        return self.n < 0


def digest_of(expert):
    return hashlib.sha256(b"".join(file.read_bytes() for file in expert.files)).hexdigest()


def draw(seed):
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random) for name, shape in {"a": (90,), "b": (3, 50), "c": ()}.items()}


@pytest.fixture
def experts(save, save_shards, save_in_order):
    return [save("a", draw(0)), save_shards("b", draw(1)), save_in_order("c", dict(reversed(draw(2).items())))]


@pytest.mark.parametrize("n_bytes", [7, 300, 1 << 20])
@pytest.mark.parametrize("n_reads", [0, 1, 2, 3, 5, 1000])
def test_a_blend_goes_on_from_wherever_a_hash_is(experts, blend, monkeypatch, n_bytes, n_reads):
    monkeypatch.setattr(hashing, "_AHEAD_BYTES", n_bytes)
    hashes = [StreamedHash(expert) for expert in experts]
    for streamed in hashes:
        streamed.read_ahead(After(n_reads))
    plain, begun = blend(experts, [0.2, 0.3, 0.5]), blend.path.read_bytes()
    assert blend.hashes == [digest_of(expert) for expert in experts]
    again = blend(experts, [0.2, 0.3, 0.5], hashes=hashes, n_threads=2)
    assert blend.hashes == [digest_of(expert) for expert in experts]
    assert blend.path.read_bytes() == begun and plain.keys() == again.keys()


def test_what_was_read_ahead_is_not_hashed_again(experts, monkeypatch):
    streamed = StreamedHash(experts[1])
    streamed.read_ahead(Event())
    monkeypatch.setattr(hashing, "read_into", None)
    assert streamed.finish() == digest_of(experts[1])


def test_a_thread_takes_them_one_after_the_other(experts, monkeypatch):
    hashes = [StreamedHash(expert) for expert in experts]
    done = Event()
    read_ahead = StreamedHash.read_ahead

    def told(self, enough):
        read_ahead(self, enough)
        if self is hashes[-1]:
            done.set()

    monkeypatch.setattr(StreamedHash, "read_ahead", told)
    with hashing_ahead(hashes):
        assert done.wait(60)
    monkeypatch.setattr(hashing, "read_into", None)
    assert [streamed.finish() for streamed in hashes] == [digest_of(expert) for expert in experts]


def test_a_file_that_changed_meanwhile_is_told_by_the_blend(experts, blend):
    hashes = [StreamedHash(expert) for expert in experts]
    experts[1].files[0].write_bytes(experts[1].files[0].read_bytes() + b"more")
    with hashing_ahead(hashes):
        pass
    with pytest.raises(CheckpointError, match="changed while it was read"):
        blend(experts, [0.2, 0.3, 0.5], hashes=hashes)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        hashes[1].finish()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [CheckpointError("gone"), ResourceError("too many open files")])
def test_what_a_thread_trips_over_is_left_to_the_blend(experts, monkeypatch, error):
    tried = Event()

    def fail(*arguments):
        tried.set()
        raise error

    monkeypatch.setattr(hashing, "open_file", fail)
    with hashing_ahead([StreamedHash(expert) for expert in experts]):
        assert tried.wait(60)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_files_that_cannot_be_looked_at_are_told_by_the_blend(experts, blend, monkeypatch):
    """A network's disk may be gone between opening a file and asking for its size and times."""
    hashes, tried = [StreamedHash(expert) for expert in experts], Event()

    def fail(descriptor):
        tried.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "stamp_of", fail)
    with hashing_ahead(hashes):
        assert tried.wait(60)
    with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
        blend(experts, [0.2, 0.3, 0.5], hashes=hashes)


def test_an_import_that_fails_stops_the_thread(experts):
    with pytest.raises(ImportError), hashing_ahead([StreamedHash(expert) for expert in experts]):
        raise ImportError


def test_python_threads_take_turns_as_before_once_the_block_ends(experts):
    before = sys.getswitchinterval()
    with pytest.raises(KeyError), hashing_ahead([StreamedHash(experts[0])]):
        assert sys.getswitchinterval() < before
        raise KeyError
    assert sys.getswitchinterval() == before
