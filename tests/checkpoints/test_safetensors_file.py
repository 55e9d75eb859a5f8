import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import safe_open, save

from glue_cli.checkpoints.header import DTYPE_BYTES
from glue_cli.checkpoints.safetensors_file import header_of, lay_out, metadata_of
from glue_cli.checkpoints.tensors import FILE_DTYPES, TORCH_DTYPES


def head(content):
    return content[: 8 + int.from_bytes(content[:8], "little")]


def described(tensors):
    return [(name, FILE_DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"glue": 'a "quoted" \\ and\nbroken\ttext\x01\x7f, ü😀'}])
def test_header_equals_safetensors_own(metadata):
    tensors = {name: torch.zeros(2, 3).to(dtype) for name, dtype in TORCH_DTYPES.items()}
    tensors |= {
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0, 4),
        "Zoë.weight": torch.zeros(1),
        "a/b\n": torch.ones(7),
    }
    assert header_of(lay_out(described(tensors)), metadata) == head(save(tensors, metadata or None))


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(lambda n: n != "__metadata__")


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(names, st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 3), max_size=3)))
)
def test_header_equals_safetensors_own_whatever_the_tensors(found):
    tensors = {name: torch.zeros(shape).to(TORCH_DTYPES[dtype]) for name, (dtype, shape) in found.items()}
    entries = lay_out(described(tensors))
    header = header_of(entries, {})
    assert header == head(save(tensors))
    assert len(header) % 8 == 0
    position = 0
    for entry in entries:
        assert entry.offset == position
        position += entry.n_bytes


def test_the_order_of_tensors_and_keys_does_not_matter():
    tensors = [("b", "F32", (2,)), ("a", "F32", (1,)), ("n", "I64", ()), ("h", "BF16", (4,))]
    metadata = {"glue": "{}", "format": "pt"}
    there = lay_out(tensors)
    assert there == lay_out(tensors[::-1])
    assert [entry.name for entry in there] == ["n", "a", "b", "h"]
    assert header_of(there, metadata) == header_of(there, dict(reversed(metadata.items())))


def test_metadata_is_sorted_and_survives_any_name(tmp_path):
    odd = "caf\udce9.safetensors"  # how Python reads a file name that is no UTF-8
    metadata = metadata_of({"z": 1, "a": ["ü", odd]})
    header = header_of([], metadata)
    (tmp_path / "x.safetensors").write_bytes(header)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == metadata and json.loads(metadata["glue"]) == {"a": ["ü", odd], "z": 1}
    assert metadata["glue"].index('"a"') < metadata["glue"].index('"z"')
