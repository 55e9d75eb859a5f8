"""Whether Parquet files would become far larger than they are.

A column of one text, repeated, takes a dictionary of that text and a count. The sizes in the file say nothing of what
it becomes, so that columns which could grow are decoded once, a few rows at a time.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from glue_cli.data.formats.claims import ROW_BYTES, Allowance

_ROWS_AT_ONCE = 64
_DICTIONARIES = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}


def check_growth(files: Sequence[Path]) -> None:
    """Refuse Parquet files that together would become larger than 512 MiB and than 100 times their size.

    Raises:
        DataError: they would.
        Exception: pyarrow's, of any kind, for a file that is damaged.
    """
    parquet = import_module("pyarrow.parquet")
    claimed, decoded = Allowance(files), Allowance(files)
    for path in files:
        with parquet.ParquetFile(path) as file:
            chunks = _chunks(file)
            claimed.take(path, _claimed(file, chunks))
            if len(files) * sum(_could_become(chunk) for chunk in chunks) > decoded.most:
                for batch in file.iter_batches(_ROWS_AT_ONCE, use_threads=False):
                    decoded.take(path, batch.nbytes)


def _chunks(file: Any) -> list[Any]:
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    return [group.column(number) for group in groups for number in range(group.num_columns)]


def _claimed(file: Any, chunks: Sequence[Any]) -> int:
    """Return the bytes that a file says it becomes."""
    n_values = max(0, *(chunk.num_values for chunk in chunks), file.metadata.num_rows)
    return int(max(sum(chunk.total_uncompressed_size for chunk in chunks), ROW_BYTES * n_values))


def _could_become(chunk: Any) -> int:
    """Return the most bytes that a chunk of a column can become, if its sizes are true."""
    if _DICTIONARIES.isdisjoint(chunk.encodings):
        return int(chunk.total_uncompressed_size + ROW_BYTES * chunk.num_values)
    return int(chunk.total_uncompressed_size * max(1, chunk.num_values))
