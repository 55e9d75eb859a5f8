"""The sizes of tuples in pickles, against Python's own unpickling; and torch files that would take for ever."""

import io
import pickle
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glue_cli.checkpoints.nested_pickles import largest_tuple
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError


def size_of(value):
    return 1 + sum(map(size_of, value)) if type(value) is tuple else 1


def tuples_in(value):
    inner = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else ()
    found = [each for part in inner for each in tuples_in(part)]
    return [value, *found] if type(value) is tuple else found


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner).map(tuple) | st.lists(inner) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=12,
)


@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL), st.booleans())
def test_the_largest_of_any_pickle(value, protocol, is_shared):
    value = [value, (value, value)] if is_shared else value
    wanted = max(map(size_of, tuples_in(value)), default=1)
    assert largest_tuple(pickle.dumps(value, protocol)) == wanted


def doubled(n):
    """Return a tuple of two of the tuple before it, n times."""
    value = ()
    for _ in range(n):
        value = (value, value)
    return value


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_is_written_once_and_used_twice_counts_twice(protocol):
    assert largest_tuple(pickle.dumps(doubled(20), protocol)) == 2**21 - 1
    assert largest_tuple(pickle.dumps(doubled(200), protocol)) == 2**201 - 1


@pytest.mark.parametrize("content", [b"", b"(", b"t.", b"h\x05.", b"0.", b"\x86.", b"garbage"])
def test_what_is_no_pickle(content):
    with pytest.raises(ValueError):
        largest_tuple(content)


def nested_key(protocol):
    """Return the pickle of a dictionary whose key is a tuple that takes 2^60 steps to hash."""
    key = pickle.dumps(doubled(60), protocol)[:-1]  # without the stop
    return (
        (pickle.PROTO + bytes([protocol]) if protocol else b"")
        + b"}"
        + key.removeprefix(pickle.PROTO + bytes([protocol]))
        + b"K\x01s."
    )


@pytest.mark.parametrize("content", [nested_key(2), pickle.dumps({"w": doubled(60)}, 2)], ids=["key", "value"])
def test_a_torch_file_that_would_take_for_ever_is_refused_at_once(tmp_path, content):
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, buffer)
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith("data.pkl") else source.read(name))
    with pytest.raises(CheckpointError, match="has tuples that contain each other too often"):
        read_checkpoint(path)
