import io
import json
import math
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from glue_cli.checkpoints.header import DTYPE_BYTES
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.safetensors_file import MAX_HEADER_BYTES
from glue_cli.foundation.errors import CheckpointError, UsageError


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(begin, end, dtype="U8", shape=None):
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.fixture
def refused(tmp_path):
    """Return the message with which a file of this content is refused; it has to name the file."""

    def refused(content):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert str(path) in caught.value.message
        return caught.value.message.replace(str(path), "FILE")

    return refused


def test_reads_what_safetensors_wrote(tmp_path):
    tensors = {"b": torch.zeros(2, 3), "a": torch.tensor(True), "e": torch.zeros(0, 2, dtype=torch.float16)}
    save_file(tensors, tmp_path / "x.safetensors", {"glue": '{"examples": 5}', "format": "pt"})
    found = read_checkpoint(tmp_path / "x.safetensors")
    assert {name: (entry.dtype, entry.shape) for name, entry in found.entries.items()} == {
        "b": ("F32", (2, 3)),
        "a": ("BOOL", ()),
        "e": ("F16", (0, 2)),
    }
    assert found.n_bytes == 25 and found.glue == {"examples": 5} and found.metadata["format"] == "pt"


@pytest.mark.parametrize("text", ["no JSON", "[1]", "7", "null", "[" * 100_000, "9" * 5000])
def test_foreign_glue_metadata_is_nothing_to_glue(tmp_path, text):
    save_file({"w": torch.zeros(1)}, tmp_path / "x.safetensors", {"glue": text})
    assert read_checkpoint(tmp_path / "x.safetensors").glue == {}


# ---- damaged files

GOOD = save({"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2, dtype=torch.float16)}, {"format": "pt"})


def test_every_cut_is_noticed(refused):
    for length in range(1, len(GOOD)):
        assert "is cut short" in refused(GOOD[:length])


def test_files_that_are_no_safetensors(refused):
    assert "is empty" in refused(b"")
    assert "was not saved by torch.save" in refused(b"PK\3\4" + b"a zip archive of something else" * 9)
    assert "is not a safetensors file" in refused(b"weights of a kind of their own" * 9)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as keras:
        keras.writestr("model.weights.h5", "x")
    assert "a zip archive that torch.save did not write" in refused(archive.getvalue())


def test_a_header_that_claims_too_much(refused):
    assert "claims 10,000,000,000 bytes, the file has 58" in refused((10**10).to_bytes(8, "little") + b"{}" * 25)
    assert "claims 99,000,000 bytes" in refused((99_000_000).to_bytes(8, "little") + b"{}")


def test_a_header_over_the_limit(tmp_path):
    path = tmp_path / "big.safetensors"
    with open(path, "wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(CheckpointError, match="has a header of 100,000,001 bytes, more than the 100,000,000"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"{]", b'{"a": }', b"\xff\xfe{}", b'{"a": "\xff"}', b"[" * 100_000, b'{"n": %s}' % (b"9" * 5000)],
)
def test_a_header_that_is_no_json(refused, text):
    assert "its header is no JSON" in refused(file_of(text))


def test_a_header_in_utf_16(refused):
    assert "its header is no JSON" in refused(file_of('{"a": 1}'.encode("utf-16")))


@pytest.mark.parametrize("header", [[], 5, None, "text"])
def test_a_header_that_is_no_object(refused, header):
    assert "its header is no object" in refused(file_of(header))


@pytest.mark.parametrize("metadata", [{"glue": 5}, {"glue": None}, ["glue"], "glue", 5])
def test_metadata_that_are_no_texts(refused, metadata):
    assert "its metadata are no texts" in refused(file_of({"__metadata__": metadata}))


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"dtype": "U8", "shape": [1]},
        {"dtype": [], "shape": [1], "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": "1", "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": {}, "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": [-1, -1], "data_offsets": [0, 1]},
        {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]},
        {"dtype": "U8", "shape": [1], "data_offsets": 1},
        {"dtype": "U8", "shape": [1], "data_offsets": ["0", "1"]},
        {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]},
        {"dtype": "U8", "shape": [10**40], "data_offsets": [0, 10**40]},
    ],
)
def test_an_entry_that_is_wrong(refused, entry):
    assert "entry of 'w' is wrong" in refused(file_of({"w": entry}, b"\0"))


def test_a_name_that_is_no_text(refused):
    header = b'{"\\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    assert "its header is no JSON" in refused(file_of(header, b"\0"))


@pytest.mark.parametrize("dtype", ["F4", "f32", "", "Q8"])
def test_an_unknown_dtype(refused, dtype):
    assert f"'w' has the dtype '{dtype}', which glue does not know" in refused(
        file_of({"w": tensor(0, 1, dtype)}, b"\0")
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"w": tensor(0, 8, "F32", [3])}, r"'w' is F32 [3], but has 8 bytes"),
        ({"w": tensor(8, 0, "F32", [2])}, r"'w' is F32 [2], but has -8 bytes"),
        ({"w": tensor(0, 8, "F32", [2**62] * 500)}, "'w' has more elements than a tensor can have: [4611"),
        ({"a": tensor(0, 5), "b": tensor(4, 8)}, "'b' overlaps 'a'"),
        ({"a": tensor(0, 8), "b": tensor(0, 8)}, "'b' overlaps 'a'"),
        ({"a": tensor(0, 3), "b": tensor(4, 8)}, "'b' leaves a hole after 'a'"),
        ({"a": tensor(1, 8)}, "'a' leaves a hole after the header"),
        ({"a": tensor(0, 7)}, "FILE has bytes behind its last tensor"),
        ({}, "has bytes behind its last tensor"),
        ({"a": tensor(0, 9)}, "FILE is cut short"),
        ({"a": tensor(0, 8), "none": tensor(5, 5)}, "overlaps"),
    ],
)
def test_tensors_that_do_not_lie_end_to_end(refused, header, message):
    assert message.replace("FILE", "'FILE'") in refused(file_of(header, bytes(8)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(list(DTYPE_BYTES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["U8", "F32"]) | json_values, "shape": json_values, "data_offsets": json_values}
)


@settings(max_examples=100, deadline=None)
@given(json_values | st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), entries | json_values))
def test_any_json_for_a_header_is_read_or_refused(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(file_of(header))
    try:
        found = read_checkpoint(path)
    except CheckpointError as error:
        assert str(path) in error.message
    else:
        assert all(math.prod(entry.shape) == 0 for entry in found.entries.values()) and found.n_bytes == 0


# ---- places


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match="no checkpoint at '.*absent.safetensors'"):
        read_checkpoint(tmp_path / "absent.safetensors")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="holds no model.safetensors"):
        read_checkpoint(tmp_path)


@pytest.fixture
def index(tmp_path):
    """Write two shards, `a` in one and `b` in two, and an index; return a function that reads the latter."""
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors", {"format": "pt"})
    save_file({"b": torch.zeros(3)}, tmp_path / "two.safetensors")

    def read(content):
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_checkpoint(path)

    return read


def test_an_index(index, tmp_path):
    found = index({"weight_map": {"b": "two.safetensors", "a": "one.safetensors"}})
    assert {name: found.files[entry.file].name for name, entry in found.entries.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }
    assert found.metadata == {"format": "pt"} and found.path.name == "model.safetensors.index.json"
    assert read_checkpoint(tmp_path).entries == found.entries


def test_a_tensor_is_taken_from_the_shard_that_the_index_names(index, tmp_path):
    save_file({"a": torch.zeros(9), "b": torch.zeros(3)}, tmp_path / "two.safetensors")
    found = index({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})
    assert found.entries["a"].shape == (2,)
    with pytest.raises(CheckpointError, match="names tensors that its shards lack") as caught:
        index({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}})
    assert caught.value.items == ("b",)


def test_an_index_that_names_what_is_not_there(index, tmp_path):
    with pytest.raises(CheckpointError, match="names shards that are not there") as caught:
        index({"weight_map": {"a": "one.safetensors", "b": "three.safetensors"}})
    assert caught.value.items == (str(tmp_path / "three.safetensors"),)
    with pytest.raises(CheckpointError, match="names tensors that its shards lack") as caught:
        index({"weight_map": {"a": "one.safetensors", "c": "one.safetensors"}})
    assert caught.value.items == ("c",)


def test_an_index_whose_shards_have_names_too_long_to_be_there(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "x" * 300 + ".safetensors"}}))
    with pytest.raises(CheckpointError, match="names shards that are not there"):
        read_checkpoint(index)


@pytest.mark.parametrize("way", ["../out.safetensors", "/etc/passwd", "sub/../../out.safetensors"])
def test_an_index_that_leads_out_of_its_folder(index, way):
    with pytest.raises(CheckpointError, match="outside its own folder") as caught:
        index({"weight_map": {"a": way}})
    assert caught.value.items == (way,)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "5", "{}", '{"weight_map": []}', '{"weight_map": null}', '{"weight_map": {"a": 5}}']
    + ['{"weight_map": {"a": ["one"]}}', '{"weight_map": {"a": "x", "b": 1}}', "[" * 100_000],
)
def test_an_index_that_is_none(index, content):
    with pytest.raises(CheckpointError, match="is no index of shards"):
        index(content)


def test_shards_that_are_no_files(index, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        index({"weight_map": {"a": "folder"}})
    with pytest.raises(CheckpointError, match="not there"):
        index({"weight_map": {"a": "one\0.safetensors"}})
