"""Tables saved with `save_to_disk` that stand for gigabytes, lie elsewhere or would crash; honest ones are read."""

import json
import os
import random
import shutil
import struct
from contextlib import suppress

import pytest
from bounded import bounded

from glue_cli.data.formats.arrow_claims import check_saved
from glue_cli.data.formats.huggingface import opening
from glue_cli.foundation.errors import DataError
from glue_cli.spec.schema import DataSpec

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")

IMPORTS = (
    "from pathlib import Path\nimport pyarrow.ipc\n"
    "from glue_cli.foundation.errors import DataError\n"
    "from glue_cli.data.formats.arrow_claims import check_saved\n"
)
TEXTS = [f"the text number {number}" for number in range(50)]


@pytest.fixture
def saved(tmp_path):
    """Save columns as the split train, as `save_to_disk` does or with other options of Arrow's; return its folder."""

    def save(columns, compression=None):
        folder = tmp_path / "train"
        table = pyarrow.table(columns)
        datasets.Dataset(table.slice(0, 1)).save_to_disk(str(folder))
        options = pyarrow.ipc.IpcWriteOptions(compression=compression)
        with pyarrow.ipc.new_stream(arrow_file(folder), table.schema, options=options) as writer:
            writer.write_table(table)
        return folder

    return save


def arrow_file(folder):
    return folder / "data-00000-of-00001.arrow"


def read(folder):
    """Return the rows that the format reads, as Python values."""
    data = DataSpec(format="huggingface", root=str(folder.parent))
    with opening(data, folder.parent, None) as open_split:
        return open_split("train").to_list()


def zeros(n):
    return pyarrow.Array.from_buffers(pyarrow.uint8(), n, [None, pyarrow.py_buffer(bytes(n))])


HUGE = {
    "zeros": lambda: {"x": zeros(600_000_000)},
    "no bytes at all": lambda: {"x": pyarrow.nulls(100_000_000)},
    "inside of others": lambda: {"x": pyarrow.FixedSizeListArray.from_arrays(pyarrow.nulls(10**8), 10**8)},
}


@pytest.mark.parametrize("columns", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_small_file_that_stands_for_gigabytes(saved, peak_of, columns, compression):
    folder = saved(columns(), compression)
    assert arrow_file(folder).stat().st_size < 4_000_000
    code = f"""
try:
    check_saved(Path({str(folder)!r}))
except DataError as error:
    assert "or more, above the 536.9 MB allowed" in error.message, error.message
else:
    raise AssertionError("it was read")
"""
    assert peak_of(code, IMPORTS) < 100 << 20


def test_a_compressed_buffer_that_lies(saved, peak_of):
    """It claims 2^40 bytes, and has 4,000."""
    folder = saved({"x": zeros(4_000)}, "zstd")
    content = arrow_file(folder).read_bytes()
    claim = struct.pack("<q", 4_000)
    assert content.count(claim) >= 1
    start = content.rindex(claim + b"\x28\xb5\x2f\xfd")
    arrow_file(folder).write_bytes(content[:start] + struct.pack("<q", 2**40) + content[start + 8 :])
    with pytest.raises(DataError, match="becomes 1.1 TB or more"):
        check_saved(folder)


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_honest_tables_are_read(saved, compression):
    columns = {
        "label": [number % 3 for number in range(50)],
        "text": TEXTS,
        "pair": [[1, 2]] * 50,
        "none": [None] * 50,
    }
    rows = read(saved(columns, compression))
    assert [row["text"] for row in rows] == TEXTS and rows[4] == {
        "label": 1,
        "text": TEXTS[4],
        "pair": [1, 2],
        "none": None,
    }


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(TEXTS).dictionary_encode(),
        pyarrow.array(TEXTS, pyarrow.string_view()),
        pyarrow.StructArray.from_arrays([pyarrow.array(TEXTS).dictionary_encode()], ["inner"]),
    ],
    ids=["dictionary", "view", "inside"],
)
def test_types_that_repeat_values_are_refused(saved, column):
    folder = saved({"x": column})
    with pytest.raises(DataError, match="column 'x' of .* is of type (dictionary|string_view)"):
        read(folder)


def test_an_offset_that_leads_out_of_the_file(saved):
    """Whoever believed it ended with a bus error."""
    folder = saved({"text": TEXTS})
    content = arrow_file(folder).read_bytes()
    offsets = struct.pack("<3i", 0, len(TEXTS[0]), len(TEXTS[0]) + len(TEXTS[1]))
    arrow_file(folder).write_bytes(content.replace(offsets, struct.pack("<3i", 0, 2 * 10**9, 2 * 10**9)))
    with pytest.raises(DataError, match="cannot be read: .*out of bounds"):
        read(folder)


def make_fifo(path):
    path.unlink()
    os.mkfifo(path)


def link_out(path):
    shutil.move(path, path.parents[1] / path.name)
    path.symlink_to(path.parents[1] / path.name)


def name_outside(path):
    shutil.move(path, path.parents[1] / path.name)
    state = path.parent / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "_data_files": [{"filename": f"../{path.name}"}]}))


@pytest.mark.parametrize(("change", "said"), [(make_fifo, "no regular file"), (link_out, "leads out of")])
@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_files_that_are_not_where_they_seem(saved, change, said, name):
    folder = saved({"text": TEXTS})
    change(folder / name)
    if name != "state.json" or change is link_out:
        with pytest.raises(DataError, match=said):
            read(folder)


def test_a_state_that_names_a_file_elsewhere(saved):
    folder = saved({"text": TEXTS})
    name_outside(arrow_file(folder))
    with pytest.raises(DataError, match="leads out of"):
        read(folder)


def test_a_state_of_many_megabytes(saved):
    folder = saved({"text": TEXTS})
    (folder / "state.json").write_bytes(b"[" + b"[]," * 6_000_000 + b"[]]")
    with pytest.raises(DataError, match="more than 16 MiB"):
        read(folder)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_damaged_tables_are_read_or_refused(saved, compression, how_many):
    folder = saved({"label": list(range(50)), "text": TEXTS, "pair": [[1, 2]] * 50}, compression)
    path, draws = arrow_file(folder), random.Random(7)
    whole, n_read = path.read_bytes(), 0
    for _ in range(how_many(300, 50_000)):
        content = bytearray(whole)
        for _ in range(draws.randint(1, 3)):
            start = draws.randrange(len(content))
            piece = draws.choice([draws.randbytes(1), draws.randbytes(8), b"\xff\xff\xff\x7f", b"\0" * 8])
            content[start : start + len(piece)] = piece
        path.write_bytes(content[: draws.choice([len(content)] * 9 + [draws.randrange(len(content))])])
        with bounded(), suppress(DataError):
            n_read += len(read(folder)) >= 0
    assert n_read
