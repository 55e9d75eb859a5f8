"""Parquet files of a few kilobytes that stand for gigabytes are refused, in little memory; honest ones are read."""

import pytest

from glue_cli.data.formats.parquet_claims import check_growth
from glue_cli.foundation.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

HUGE = {
    "one text, repeated": lambda: {
        "text": pyarrow.array(["a" * 1_000_000]).take(pyarrow.nulls(2_000, "int32").fill_null(0))
    },
    "one number, repeated": lambda: {"x": pyarrow.nulls(100_000_000, pyarrow.int8()).fill_null(0)},
    "one image, repeated": lambda: {
        "image": pyarrow.array([b"\0" * 500_000]).take(pyarrow.nulls(3_000, "int32").fill_null(0))
    },
}


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("columns", HUGE.values(), ids=HUGE)
def test_a_small_file_that_stands_for_gigabytes(tmp_path, peak_of, columns, compression):
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.table(columns()), path, compression=compression, row_group_size=10**9)
    assert path.stat().st_size < 2_000_000
    code = f"""
try:
    check_growth([Path({str(path)!r})])
except DataError as error:
    assert "or more, above the 536.9 MB allowed" in error.message, error.message
else:
    raise AssertionError("it was read")
"""
    imports = (
        "from pathlib import Path\nimport pyarrow.parquet\n"
        "from glue_cli.foundation.errors import DataError\n"
        "from glue_cli.data.formats.parquet_claims import check_growth\n"
    )
    assert peak_of(code, imports) < 400 << 20


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_honest_files_pass(tmp_path, compression):
    path = tmp_path / "train.parquet"
    columns = {
        "label": [number % 10 for number in range(200_000)],
        "text": [f"the text number {number % 5000}, " * 5 for number in range(200_000)],
        "x": [number / 7 for number in range(200_000)],
    }
    parquet.write_table(pyarrow.table(columns), path, compression=compression)
    check_growth([path])


def test_the_format_asks(tmp_path):
    pytest.importorskip("datasets")
    from glue_cli.data import read_dataset
    from glue_cli.spec.schema import DataSpec

    label = pyarrow.nulls(2_000, pyarrow.int8()).fill_null(0)
    table = pyarrow.table(HUGE["one text, repeated"]() | {"label": label})
    parquet.write_table(table, tmp_path / "train.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"train.parquet' has \d+ B and becomes [\d.]+ MB or more, above the 536.9 MB"):
        read_dataset(DataSpec(format="huggingface", root=str(tmp_path)), "train", root=tmp_path)
