"""Headers of safetensors files, right, odd and damaged: glue reads what the safetensors library reads, and no more."""

import itertools
import json
import math
import random
import re

import pytest
import torch
from bounded import bounded
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import save

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

# What glue refuses alone: parts of bytes, which PyTorch has no tensors of, and shapes that it cannot describe.
PARTS_OF_BYTES = ("F4", "F6_E2M3", "F6_E3M2")
LARGEST_SHAPE = 2**63

ENTRY = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
TOKENS = [
    *("NaN", "Infinity", "-Infinity", "-0", "-0.0", "0.0", "1e0", "1e999", "1e-999", "01", "+1", "1.", ".5", "0x1"),
    *('"0"', '"1"', "null", "true", "{}", "[]", "[[]]", '""', "4", "0", "1", "2", "255", "-1", "9" * 400, "9" * 5000),
    *("18446744073709551615", "18446744073709551616", "9223372036854775808", "9223372036854775807", "4294967296"),
    *(
        '"\\ud800"',
        '"\\udc00"',
        '"\\ud83d\\ude00"',
        '"\\ud83d\\ud83d"',
        '"\\ud83dx"',
        '"\\u0000"',
        '"\\x"',
        '"\\"',
        '"\x01"',
    ),
    *('"U8"', '"F32"', '"F4"', '"F8_E8M0"', '"BF16"', '"f32"', '{"U8":null}', '{"U8":{}}', '{"U8":null,"U8":null}'),
    *(
        '"dtype":"U8",',
        '"shape":[1],',
        '"data_offsets":[0,1],',
        '"x":1,',
        '"__metadata__":{},',
        '"__metadata__":null,',
    ),
    *(f'"a":{{{ENTRY}}},', f'"\\u0061":{{{ENTRY}}},', '"a":null,', '"a":["U8",[1],[0,1]],', '"a":["U8",[1]],'),
    *("[" * n + "]" * n for n in (124, 125, 126, 127, 128, 2000)),
    *('{"x":' * n + "1" + "}" * n for n in (124, 125, 126, 127, 128)),
    *(
        " ",
        "\t",
        "\n",
        "\r",
        "\f",
        "\v",
        "\0",
        "\xa0",
        "\ufeff",
        "\u2028",
        "é",
        "😀",
        "/**/",
        "//\n",
        ",",
        ":",
        "}",
        "]",
    ),
]
TOKENS_OF_SPACE = [" ", "\t", "\n", "\r", "  \r\n", "\f", "\0", "\xa0"]
PIECE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[\d.eE+]+|[^\s"]')


def content(header, data=b""):
    text = header if isinstance(header, bytes) else header.encode()
    return len(text).to_bytes(8, "little") + text + data


RIGHT = [
    content(f'{{"a":{{{ENTRY}}}}}', b"1"),
    content(f'{{"a":{{"x":null,{ENTRY}}},"__metadata__":{{"k":"v"}}}}', b"1"),
    content(
        '{"a":{"dtype":"U8","shape":[0],"data_offsets":[1,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"1",
    ),
    content('{"a":{"dtype":"F32","shape":[2,0,3],"data_offsets":[0,0]}}'),
    content("{}"),
    save({"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2, dtype=torch.float16)}, {"format": "pt"}),
]


def mutate(draws, whole):
    """Return the content of a file with one to three faults in its header; its length fits again, mostly."""
    n = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + n], whole[8 + n :]
    for _ in range(draws.choice([1, 1, 1, 2, 3])):
        pieces = [found.span() for found in PIECE.finditer(header)] or [(0, 0)]
        begin, end = draws.choice(pieces)
        token = draws.choice(TOKENS).encode()
        match draws.randrange(12):
            case 0:  # another value, or what is none
                header = header[:begin] + token + header[end:]
            case 1:
                header = header[:begin] + token + header[begin:]
            case 2:  # two pieces changed places
                other, last = draws.choice(pieces)
                header = header[:begin] + header[other:last] + header[end:]
            case 3:
                header = header[:begin] + header[end:]
            case 4 if header:
                at = draws.randrange(len(header))
                header = header[:at] + bytes([header[at] ^ 1 << draws.randrange(8)]) + header[at + 1 :]
            case 5 | 6:  # space, of JSON's four kinds and others
                header = header[:end] + draws.choice(TOKENS_OF_SPACE).encode() + header[end:]
            case 7 | 8 | 9 | 10:  # a key that nobody asked for, or that is there already
                at = draws.choice([found.end() for found in re.finditer(rb"\{", header)] or [0])
                key = draws.choice([b'"x":', b'"dtype":', b'"__metadata__":', b'"a":', b'"\\u0078":'])
                comma = b"," if header[at : at + 1] != b"}" else b""
                header = header[:at] + (key + token + comma) + header[at:]
            case 11:  # no elements, of whatever dtype
                shape = draws.choice([b"[0]", b"[%s,0]" % token, b"[0,%s]" % token, b"[0,4294967296,4294967296]"])
                dtype = draws.choice(["F4", "F6_E2M3", "F8_E8M0", "C64", "U8"]).encode()
                entry = b'"e":{"dtype":"%s","shape":%s,"data_offsets":[0,0]}' % (dtype, shape)
                header = header.replace(b"{", b"{" + entry + b"," * (header != b"{}"), 1)
    data = data[: draws.randrange(len(data) + 1)] if draws.random() < 0.05 else data + b"x" * (draws.random() < 0.05)
    return (
        content(header, data) if draws.random() < 0.97 else bytes([draws.randrange(256)]) + content(header, data)[1:]
    )


def read_by_the_library(path):
    """Return every tensor's dtype, shape and bytes, and the metadata; None where the library refuses the file."""
    whole = path.read_bytes()
    try:
        tensors = {name: (info["dtype"], info["shape"], bytes(info["data"])) for name, info in deserialize(whole)}
        with safe_open(path, "pt") as file:
            return tensors, file.metadata() or {}
    except SafetensorError:
        return None


def read_by_glue(path):
    whole = path.read_bytes()
    try:
        found = read_checkpoint(path)
    except CheckpointError as error:
        assert str(path) in error.message and len(error.message) < 1000
        return None
    return {
        entry.name: (entry.dtype, list(entry.shape), whole[entry.offset : entry.offset + entry.n_bytes])
        for entry in found.entries.values()
    }, found.metadata


def is_beyond_pytorch(dtype, shape):
    return dtype in PARTS_OF_BYTES or math.prod(n or 1 for n in shape) >= LARGEST_SHAPE


def test_glue_reads_what_the_library_reads(tmp_path, how_many):
    draws = random.Random(17)
    path = tmp_path / "some.safetensors"
    counts = {"both read": 0, "both refuse": 0, "beyond PyTorch": 0}
    for number in range(how_many(4_000, 100_000)):
        whole = mutate(draws, RIGHT[number % len(RIGHT)])
        path.write_bytes(whole)
        with bounded():
            ours = read_by_glue(path)
        theirs = read_by_the_library(path)
        if ours is None and theirs and any(is_beyond_pytorch(dtype, shape) for dtype, shape, _ in theirs[0].values()):
            counts["beyond PyTorch"] += 1
            continue
        assert ours == theirs, whole
        counts["both refuse" if ours is None else "both read"] += 1
    assert min(counts.values()) > 0 and counts["both read"] > 0.1 * sum(counts.values()), counts


def test_of_a_repeated_name_only_the_last_has_to_be_right(tmp_path):
    path = tmp_path / "twice.safetensors"
    for shape, overflows in (("[0,4294967296,4294967296]", False), ("[18446744073709551615,2]", True), ("[3]", True)):
        wide = f'"a":{{"dtype":"U8","shape":{shape},"data_offsets":[0,0]}}'
        path.write_bytes(content(f'{{{wide},"a":{{{ENTRY}}}}}', b"1"))
        assert read_by_glue(path) == read_by_the_library(path) and read_by_glue(path)
        path.write_bytes(content(f'{{"a":{{{ENTRY}}},{wide}}}'))
        assert read_by_glue(path) is None and (read_by_the_library(path) is None) is overflows


@pytest.mark.parametrize(
    "header",
    [
        f'{{"a":{{"x":TOKEN,{ENTRY}}}}}',
        f'{{"a":{{TOKEN{ENTRY}}}}}',
        f'{{TOKEN"a":{{{ENTRY}}}}}',
        f'{{"a":{{{ENTRY}}}TOKEN}}',
        f'{{"a":{{{ENTRY}}}}}TOKEN',
        '{"a":{"dtype":TOKEN,"shape":[1],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[TOKEN],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":TOKEN,"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[0,TOKEN],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[TOKEN,1]}}',
        f'{{"__metadata__":{{"k":TOKEN}},"a":{{{ENTRY}}}}}',
        f'{{"__metadata__":TOKEN,"a":{{{ENTRY}}}}}',
    ],
)
def test_every_odd_token_everywhere(tmp_path, header):
    path = tmp_path / "odd.safetensors"
    for token, data in itertools.product(TOKENS, (b"", b"1")):
        path.write_bytes(whole := content(header.replace("TOKEN", token), data))
        theirs, ours = read_by_the_library(path), read_by_glue(path)
        is_beyond = theirs and any(is_beyond_pytorch(*found[:2]) for found in theirs[0].values())
        assert ours == theirs or ours is None and is_beyond, whole


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[%s0],"data_offsets":[0,0]}}' % ("1099511627776," * 300_000),
        f'{{"a":{{"x":[{"[]," * 10_000_000}[]],{ENTRY}}}}}',
        '{"a":{"x":"%s"}}' % ("\x7f" * 30_000_000),
        '{"%s":5}' % ("n" * 30_000_000),
        '{"a":{"dtype":"%s","shape":[1],"data_offsets":[0,1]}}' % ("F" * 30_000_000),
        '{"__metadata__":{"é":["%s"]}}' % ("n" * 30_000_000),
        json.dumps({n: {"dtype": "U8", "shape": [], "data_offsets": [0, 0]} for n in range(600_000)}),
    ],
    ids=["dimensions", "lists", "text", "name", "dtype", "metadata", "tensors"],
)
def test_huge_headers_take_little_memory_and_few_words(tmp_path, header, peak_of):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(content(header, b"1"))
    code = f"""
from pathlib import Path
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError
try:
    read_checkpoint(Path({str(path)!r}))
except CheckpointError as error:
    assert len(error.message) < 2_000, len(error.message)
else:
    raise SystemExit("read")
"""
    assert peak_of(code) < 512 << 20


def test_a_name_repeated_in_a_message_is_cut(tmp_path):
    path = tmp_path / "long.safetensors"
    path.write_bytes(content(json.dumps({"n" * 10_000: {"dtype": "F99", "shape": [1], "data_offsets": [0, 1]}}), b"1"))
    with pytest.raises(CheckpointError, match="F99") as caught:
        read_checkpoint(path)
    assert len(caught.value.message) < 1000 + len(str(path))
