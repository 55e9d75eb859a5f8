"""CSV and TSV files, read as the format huggingface reads them."""

import gzip

import pytest

from glue_cli.foundation.errors import DataError

pytest.importorskip("datasets")


@pytest.mark.parametrize(("ending", "parted"), [("tsv", "\t"), ("csv.gz", ","), ("tsv.gz", "\t")])
def test_tables_parted_by_tabs_and_compressed_ones(tmp_path, read, ending, parted):
    for part, row in enumerate(("1.5|b", "2.5|a")):
        content = f"x|label\n{row}\n".replace("|", parted).encode()
        path = tmp_path / f"train-0000{part}-of-00002.{ending}"
        path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    table = read(columns={"inputs": "x"})
    assert table.inputs.flatten().tolist() == [1.5, 2.5] and table.targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (['"He said\t1', "then\t0", 'fine" she said\t1'], [1, 0, 1]),  # three texts
        (['"so\t1', "well\t0"], [1, 0]),
        (['"a ""word"""\t1', "well\t0"], [1, 0]),
        (['"a\ttab"\t1', "well\t0"], [1, 0]),
    ],
)
def test_quotes_beside_tabs_may_be_part_of_a_text(tmp_path, read, rows, wanted):
    (tmp_path / "train.tsv").write_text("\n".join(["n\ttext\tlabel", *(f"{n}\t{row}" for n, row in enumerate(rows))]))
    table = read(columns={"inputs": "n"})
    assert table.inputs.flatten().tolist() == [*range(len(rows))] and table.targets.tolist() == wanted


def test_what_is_called_tsv_and_is_csv(tmp_path, read):
    (tmp_path / "train.tsv.csv").write_text("n,label\n3,1\n")
    assert read(columns={"inputs": "n"}, splits={"train": "train.tsv"}).inputs.tolist() == [[3]]


def test_what_does_not_fit_when_unpacked_is_told(tmp_path, read, monkeypatch):
    monkeypatch.setattr("glue_cli.data.formats.csv_files.free_memory", lambda device: 1000)
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"x,label\n" + b"1,1\n" * 1000))
    with pytest.raises(DataError, match="train.csv.gz' is more than .* when unpacked"):
        read(columns={"inputs": "x"})


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (["01"] * 3 + ["E11"] * 20_000 + ["01"], [0] * 3 + [1] * 20_000 + [0]),
        (["1"] * 20_000 + ["E11"], [0] * 20_000 + [1]),
        (["None", "NA", '"nan"', "None"], [1, 0, 2, 1]),
    ],
    ids=["zeros", "a late name", "words for nothing"],
)
def test_a_csv_s_classes_are_what_is_written(tmp_path, read, cells, wanted):
    (tmp_path / "train.csv").write_text("x,label\n" + "".join(f"1,{cell}\n" for cell in cells))
    assert read(columns={"inputs": "x"}).targets.tolist() == wanted


def test_rows_with_more_fields_than_names_are_told(tmp_path, read):
    (tmp_path / "train.csv").write_text("text,label\ngood, very good,1\nbad, very bad,0\n")
    with pytest.raises(DataError, match="more fields than its first line has names"):
        read()


def test_two_columns_of_one_name_are_told(tmp_path, read):
    file = tmp_path / "train.csv"
    file.write_text('text,"label",label,,\ngood,1,0,,\n')
    with pytest.raises(DataError, match=r"two columns 'label'") as caught:
        read()
    assert "rename one" in caught.value.hint
    file.write_text("text,label,note,note\ngood,1,2,3\n")  # which nobody asked for
    assert read(columns={"inputs": "note.1"}).targets.tolist() == [1]
    file.write_text("text,label,label.1,,\ngood,1,0,,\n")
    assert read(columns={"inputs": "label.1"}).targets.tolist() == [1]
