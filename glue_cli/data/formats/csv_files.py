"""CSV and TSV files, also by gzip, as one table, by pandas: each column has one type, whatever its length."""

import csv
import gzip
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from glue_cli.foundation.errors import DataError
from glue_cli.foundation.memory import free_memory
from glue_cli.foundation.units import size

# A part of a column at a time would have a type of its own; and of the cells that pandas takes for missing, only empty
# ones are: None and NA may be a class.
_OPTIONS: dict[str, Any] = {"low_memory": False, "keep_default_na": False, "na_values": [""]}
_BLOCK = 1 << 20  # bytes


def read_csv(paths: Sequence[Path], wanted: Collection[str]) -> Any:
    """Return the rows of files with the same columns as a table of pandas.

    Args:
        wanted: the names of the columns that may be read.
    Raises:
        DataError: the files differ in their columns, two of those wanted have one name, or rows have more fields than
            their file's first line has names.
        Exception: whatever pandas raises for a damaged file.
    """
    pandas: Any = import_module("pandas")
    ways = [_way_of(pandas, path) for path in paths]
    tables = [_read(pandas, path, way) for path, way in zip(paths, ways, strict=True)]
    for path, way, table in zip(paths, ways, tables, strict=True):
        if twice := _named_twice(_read(pandas, path, {**way, "header": None, "nrows": 1, "dtype": str}), wanted):
            raise DataError(
                f"'{path}' has two columns '{twice}'", hint="rename one of them: it is not clear which is meant"
            )
        if not isinstance(table.index, pandas.RangeIndex):
            raise DataError(
                f"'{path}': its rows have more fields than its first line has names",
                hint="put texts with commas into quotes, and name every column",
            )
        if list(table.columns) != list(tables[0].columns):
            raise DataError(f"'{path}' has other columns than '{paths[0]}'", hint="they are parts of one table")
    if odd := [name for name in tables[0].columns if _differs(pandas, [table[name].dtype for table in tables])]:
        as_text = {"dtype": dict.fromkeys(odd, str)}
        tables = [_read(pandas, path, way | as_text) for path, way in zip(paths, ways, strict=True)]
    return pandas.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]


def _way_of(pandas: Any, path: Path) -> dict[str, Any]:
    """Return the options that a file is read with: what parts its cells, and whether quotes are part of them.

    Raises:
        DataError: it is empty, or its content does not fit into memory.
    Cost: files parted by tabs, and those in gzip, are read once for it.
    """
    if path.suffix == ".gz":
        _check_growth(path)
    if not path.name.removesuffix(".gz").endswith(".tsv"):
        return {"sep": ","}
    return {"sep": "\t", "quoting": csv.QUOTE_MINIMAL if _is_quoted(pandas, path) else csv.QUOTE_NONE}


def _read(pandas: Any, path: Path, options: Mapping[str, Any]) -> Any:
    """Return a file's rows.

    Raises:
        DataError: it is empty.
    """
    try:
        return pandas.read_csv(path, **_OPTIONS, **options)
    except pandas.errors.EmptyDataError:
        raise DataError(
            f"'{path}' is empty", hint="wanted a line with the columns' names, then a row a line"
        ) from None


def _check_growth(path: Path) -> None:
    """Check that what a file is unpacked to fits into memory: a small one may claim any size."""
    free, n_bytes = free_memory(torch.device("cpu")), 0
    with gzip.open(path) as file:
        while block := file.read(_BLOCK):
            n_bytes += len(block)
            if n_bytes > free:
                raise DataError(
                    f"'{path}' is more than {size(n_bytes)} when unpacked, and does not fit into memory",
                    hint="split the data into less, or use a machine with more memory",
                )


def _is_quoted(pandas: Any, path: Path) -> bool:
    """Tell whether a file parted by tabs has cells in quotes; one that just begins with a quote is a text."""
    try:
        table = _read(pandas, path, {"sep": "\t", "quoting": csv.QUOTE_NONE, "header": None, "dtype": str})
    except pandas.errors.ParserError:  # a cell has a tab
        return True
    cells = table.stack().astype(str)
    begin, end = cells.str.startswith('"'), cells.str.endswith('"')
    return bool(begin.any() and begin.equals(end))


def _named_twice(first: Any, wanted: Collection[str]) -> str | None:
    """Return a wanted name that two cells of the first line have, which pandas would give a number; None if none."""
    names = Counter(name for name in first.iloc[0] if isinstance(name, str)) if len(first) else Counter[str]()
    return next((name for name, n in names.items() if n > 1 and name in wanted), None)


def _differs(pandas: Any, dtypes: Sequence[Any]) -> bool:
    """Tell whether a column is of numbers in some files, and of something else in others."""
    return len(set(dtypes)) > 1 and not all(map(pandas.api.types.is_numeric_dtype, dtypes))
