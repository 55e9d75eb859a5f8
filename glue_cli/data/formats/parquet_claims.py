"""Whether a Parquet file would become far larger than it is: a few bytes may stand for any number of rows and texts.

A column of one text, repeated, takes a dictionary of that text and a count. The sizes in the file say nothing of what
it becomes, so that columns which could grow are decoded once, a few rows at a time.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from glue_cli.foundation.errors import DataError
from glue_cli.foundation.units import size

# Both are generous: columns of labels become a thousand times larger, but are small; texts and images hardly grow.
_MOST_GROWTH, _ALWAYS_ALLOWED = 100, 512 << 20
_ROW_BYTES = 8  # of the widest number
_ROWS_AT_ONCE = 64
_DICTIONARIES = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}


def check_growth(path: Path) -> None:
    """Refuse a Parquet file that would become larger than 512 MiB and than 100 times its size.

    Raises:
        DataError: it would.
        Exception: pyarrow's, of any kind, for a file that is damaged.
    """
    parquet = import_module("pyarrow.parquet")
    most = max(_ALWAYS_ALLOWED, _MOST_GROWTH * path.stat().st_size)
    with parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        claimed = max(
            sum(chunk.total_uncompressed_size for chunk in chunks),
            _ROW_BYTES * max(0, *(chunk.num_values for chunk in chunks), file.metadata.num_rows),
        )
        if claimed > most:
            raise _too_large(path, claimed, most)
        if sum(_could_become(chunk) for chunk in chunks) > most:
            _decode(path, file, most)


def _could_become(chunk: Any) -> int:
    """Return the most bytes that a chunk of a column can become, if its sizes are true."""
    if _DICTIONARIES.isdisjoint(chunk.encodings):
        return int(chunk.total_uncompressed_size + _ROW_BYTES * chunk.num_values)
    return int(chunk.total_uncompressed_size * max(1, chunk.num_values))


def _decode(path: Path, file: Any, most: int) -> None:
    """Decode all rows, and drop them again, until they are more than `most` bytes."""
    n_bytes = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE, use_threads=False):
        n_bytes += batch.nbytes
        if n_bytes > most:
            raise _too_large(path, n_bytes, most)


def _too_large(path: Path, n_bytes: int, most: int) -> DataError:
    here = size(path.stat().st_size)
    return DataError(
        f"'{path}' has {here} and becomes {size(n_bytes)} or more, above the {size(most)} allowed",
        hint="write its rows as text or as numbers, in JSON lines or safetensors, if all of that is meant",
    )
