"""Whether a table that `datasets` saved with `save_to_disk` is sound, and does not become far larger than it is.

`datasets` maps the Arrow files into memory and believes what they say: an offset that leads out of a file ends the
process with a bus error, and eight bytes before a compressed buffer claim any size.
"""

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from glue_cli.data.formats.claims import ROW_BYTES, Allowance
from glue_cli.data.formats.flatbuffer import root_table
from glue_cli.foundation.errors import DataError
from glue_cli.foundation.regular_files import find_irregular, read_text

_ABOUT = ("state.json", "dataset_info.json")
_MOST_ABOUT = 16 << 20  # bytes of each; a file of empty lists takes twenty times its size
# Types whose values can refer to the same bytes again and again. `save_to_disk` writes none of them by itself.
_REPEATING = ("dictionary", "run_end_encoded", "string_view", "binary_view", "list_view", "large_list_view")
# Places in Arrow's flatbuffers, https://github.com/apache/arrow/blob/main/format/Message.fbs
_HEADER_TYPE, _HEADER = 1, 2  # of a message
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # types of headers
_DICTIONARY_DATA = 1
_LENGTH, _NODES, _BUFFERS, _COMPRESSION = 0, 1, 2, 3  # of a record batch


def check_saved(folder: Path) -> None:
    """Refuse a saved table whose files are damaged, lie elsewhere, or become larger than `Allowance` says.

    Raises:
        DataError: they do.
        Exception: of pyarrow, json or struct, for a file that is damaged.
    """
    for name in _ABOUT:
        _check_file(folder, folder / name)
        if (folder / name).stat().st_size > _MOST_ABOUT:
            raise DataError(
                f"'{folder / name}' has more than {_MOST_ABOUT >> 20} MiB",
                hint="save the table again with save_to_disk",
            )
    state = json.loads(read_text(folder / _ABOUT[0]))
    files = [folder / entry["filename"] for entry in state["_data_files"]]
    for file in files:
        _check_file(folder, file)
    allowance = Allowance(files)
    for file in files:
        _check_growth(file, allowance)
    for file in files:
        _check_content(file)


def _check_file(folder: Path, file: Path) -> None:
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"'{file}' leads out of '{folder}'", hint="copy the file into the folder")
    if find_irregular([file]):
        raise DataError(f"'{file}' is no regular file", hint="put the file itself there, no pipe or device")


def _check_growth(file: Path, allowance: Allowance) -> None:
    """Count what a file becomes, from its messages alone, which are mapped and not decompressed."""
    pyarrow = import_module("pyarrow")
    with pyarrow.memory_map(str(file)) as source:
        for message in pyarrow.ipc.MessageReader.open_stream(source):
            for n_bytes in _claims(message):
                allowance.take(file, n_bytes)


def _claims(message: Any) -> Iterator[int]:
    """Yield how many bytes the buffers of a message become, and its longest column."""
    table = root_table(memoryview(message.metadata))
    kind = table.number(_HEADER_TYPE, "<B")
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return
    batch = table.table(_HEADER)
    if kind == _DICTIONARY_BATCH:
        batch = batch.table(_DICTIONARY_DATA)
    n_rows = (length for length, _ in batch.structs(_NODES, "<qq"))
    yield ROW_BYTES * max(batch.number(_LENGTH, "<q"), *n_rows, 0)
    body = memoryview(message.body) if message.body else memoryview(b"")
    for start, n_bytes in batch.structs(_BUFFERS, "<qq"):
        if batch.has(_COMPRESSION) and n_bytes >= 8:
            (claimed,) = struct.unpack("<q", body[start : start + 8])
            yield n_bytes if claimed == -1 else max(0, claimed)  # -1: this one is not compressed
        else:
            yield n_bytes


def _check_content(file: Path) -> None:
    """Decode a file batch by batch, and check every offset and text."""
    pyarrow = import_module("pyarrow")
    with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as reader:
        for field in reader.schema:
            if repeating := _repeating(field.type):
                raise DataError(
                    f"column '{field.name}' of '{file}' is of type {repeating}", hint="cast it to its values"
                )
        for batch in reader:
            batch.validate(full=True)


def _repeating(kind: Any) -> str | None:
    """Return the name of a type that can repeat values, of a column or inside of its type."""
    types = import_module("pyarrow").types
    kind = getattr(kind, "storage_type", kind)
    here = next((name for name in _REPEATING if getattr(types, f"is_{name}")(kind)), None)
    inner = (_repeating(kind.field(number).type) for number in range(kind.num_fields))
    return here or next((name for name in inner if name), None)
