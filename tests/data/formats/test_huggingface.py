import bz2
import gzip
import io
import json
import lzma
import os
import struct

import pytest
import torch
from PIL import Image

from glue_cli.data import read_dataset
from glue_cli.data.formats import huggingface
from glue_cli.data.formats.huggingface import read_huggingface
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.spec.schema import DataSpec

datasets = pytest.importorskip("datasets")


def picture(colour, mode="RGB", size=(4, 3)):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def images(colours, labels, names=("ant", "bee"), **settings):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    cells = [picture(colour, **settings) for colour in colours]
    return datasets.Dataset.from_dict({"img": cells, "label": labels}, features=features)


def named(numbers, *names):
    table = datasets.Dataset.from_dict({"a": [float(n) for n in numbers], "label": numbers})
    return table.cast_column("label", datasets.ClassLabel(names=list(names))) if names else table


def test_a_saved_dataset_dict_of_images(tmp_path, read):
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    splits = {"train": images([red, green], [1, 0]), "validation": images([blue], [1]), "test": images([green], [0])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path))
    train = read()
    assert train.inputs.shape == (2, 3, 3, 4) and train.inputs.dtype == torch.uint8
    assert train.inputs[:, :, 0, 0].tolist() == [list(red), list(green)]
    assert train.targets.tolist() == [1, 0] and train.targets.dtype == torch.int64
    assert train.class_names == ("ant", "bee")
    assert read("val").inputs[0, :, 2, 3].tolist() == list(blue) and read("test").targets.tolist() == [0]
    assert read("test", splits={"test": "validation"}).targets.tolist() == [1]
    assert read(image_size=2).inputs.shape == (2, 3, 2, 2)


@pytest.mark.parametrize(("modes", "n_channels"), [(["L", "1"], 1), (["L", "RGB"], 3), (["P", "L"], 3)])
def test_images_have_one_channel_where_all_are_grey(tmp_path, read, modes, n_channels):
    table = datasets.Dataset.from_dict({"image": [picture(1, mode) for mode in modes], "label": [0, 1]})
    table.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "train"))
    assert read().inputs.shape == (2, n_channels, 3, 4)


def test_parquet_as_the_hub_has_it(tmp_path, read):
    (tmp_path / "data").mkdir()
    for i, colour in enumerate([10, 20]):
        path = tmp_path / "data" / f"train-0000{i}-of-00002.parquet"
        images([(colour, 0, 0)], [i]).to_parquet(str(path))
    train = read()
    assert train.inputs[:, 0, 0, 0].tolist() == [10, 20] and train.targets.tolist() == [0, 1]
    assert train.class_names == ("ant", "bee") and read("val") is None


def test_a_folder_of_images(tmp_path, read):
    root = tmp_path / "some [1] *folder"
    for split, classes in (("train", "ab"), ("test", "b")):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (ord(name), 0, 0)).save(root / split / name / "x.png")
    assert read(root=root).targets.tolist() == [0, 1]
    test = read("test", root=root)  # whose classes are numbered as in train
    assert test.targets.tolist() == [1] and test.class_names == ("a", "b") and test.inputs[0, 0, 0, 0] == ord("b")


def test_a_table_of_numbers(tmp_path, read):
    (tmp_path / "train.csv").write_text("a,b,y,z\n1,2,0.5,x\n3,4,-1.5,y\n")
    (tmp_path / "test.csv").write_text("a,b,y,z\n5,6,2,y\n")
    regression = read(columns={"inputs": ["b", "a"], "target": "y"})
    assert regression.inputs.tolist() == [[2, 1], [4, 3]] and regression.targets.tolist() == [0.5, -1.5]
    assert regression.inputs.dtype == regression.targets.dtype == torch.float32
    assert read("test", columns={"inputs": ["b", "a"], "target": "y"}).targets.tolist() == [2.0]
    assert read(columns={"inputs": "a", "target": ["y", "b"]}).targets.tolist() == [[0.5, 2], [-1.5, 4]]
    assert read(columns={"inputs": "a", "target": "y"}).inputs.tolist() == [[1], [3]]
    named = read("test", columns={"inputs": "a", "label": "z"})  # the class names are those of train
    assert named.targets.tolist() == [1] and named.class_names == ("x", "y")
    assert read(columns={"inputs": "a", "label": "b"}).class_names is None


def test_lists_of_numbers(tmp_path, read):
    rows = [{"x": [[1, 2], [3, 4]], "y": [0.5, 1]}, {"x": [[5, 6], [7, 8]], "y": [2, 3]}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    found = read(columns={"inputs": "x", "target": "y"})
    assert found.inputs.tolist() == [row["x"] for row in rows] and found.targets.shape == (2, 2)


def test_texts(tmp_path, make_tokenizer):
    lines = [{"text": "good", "label": "yes", "score": 0.5}, {"text": "bad film", "label": "no", "score": 1.5}]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    folder = make_tokenizer(tmp_path / "model")
    data = DataSpec(format="huggingface", root=".", max_length=3)
    found = read_dataset(data, "train", root=tmp_path, tokenizer=folder)
    assert found.inputs.padded(3).tolist() == [[2, 10, 3], [2, 11, 3]] and found.class_names == ("no", "yes")
    scores = data.model_copy(update={"columns": {"target": ["score"]}})
    assert read_dataset(scores, "train", root=tmp_path, tokenizer=folder).targets.tolist() == [0.5, 1.5]
    (tmp_path / "test.csv").write_text("text\ngood\nbad film\n")
    alone = read_dataset(DataSpec(format="huggingface", root="."), "test", root=tmp_path, tokenizer=folder)
    assert alone.labels is None and alone.targets.padded(4)[1].tolist() == [11, 7, 3, -100]


def test_pairs_of_texts(tmp_path, make_tokenizer):
    (tmp_path / "train.csv").write_text("premise,hypothesis,label\ngood film,bad,0\nbad,good,1\n")
    folder = make_tokenizer(tmp_path / "model", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    data = DataSpec(format="huggingface", root=".", columns={"text": ["premise"], "text_pair": ["hypothesis"]})
    found = read_dataset(data, "train", root=tmp_path, tokenizer=folder).inputs
    assert found.padded(6).tolist() == [[2, 10, 7, 3, 11, 3], [2, 11, 3, 10, 3, 0]]
    assert found.padded_types(6).tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    (tmp_path / "train.csv").write_text("text,text_pair,label\ngood film,bad,0\n")
    usual = DataSpec(format="huggingface", root=".")
    assert read_dataset(usual, "train", root=tmp_path, tokenizer=folder).inputs.padded(6)[0].tolist() == [
        2,
        10,
        7,
        3,
        11,
        3,
    ]
    (tmp_path / "train.csv").write_text("text,text_pair\ngood film,bad\n")
    with pytest.raises(SpecError, match="texts without labels have no text_pair"):
        read_dataset(usual, "train", root=tmp_path, tokenizer=folder)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"inputs": "a", "text_pair": "z", "target": "y"}, SpecError, "text_pair goes with text, not with inputs"),
        (
            {},
            SpecError,
            "wanted one of image, text, messages, prompt, inputs, but '.*' .train. has no usual column for that",
        ),
        ({"inputs": "a"}, SpecError, "wanted one of label, target, but"),
        ({"inputs": "aa", "target": "y"}, SpecError, "data.columns.inputs: .* has no column 'aa'"),
        ({"inputs": "a", "text": "z", "target": "y"}, SpecError, "data.columns names inputs and text"),
        ({"inputs": "a", "label": ["y", "z"]}, SpecError, "data.columns.label: found 2 columns, wanted one"),
        ({"inputs": ["a", "z"], "target": "y"}, DataError, "column 'z', row 0 .from 0.: found 'x', wanted a number"),
        ({"inputs": "b", "target": "y"}, DataError, "column 'b', row 0 .from 0.: there is no number"),
        ({"inputs": "a", "label": "y"}, DataError, "column 'y', row 0 .from 0.: the label is 0.5"),
        ({"inputs": "a", "label": "n"}, DataError, "column 'n', row 1 .from 0.: the label is -1"),
        ({"text": "a", "target": "y"}, DataError, "column 'a', row 0 .from 0.: found '1', wanted text"),
        ({"image": "a", "target": "y"}, DataError, "column 'a' does not hold images"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, read, columns, error, message):
    (tmp_path / "train.csv").write_text("a,b,y,z,n\n1,,0.5,x,0\n3,4,-1.5,y,-1\n")
    with pytest.raises(error, match=message):
        read(columns=columns)


def test_images_that_are_none(tmp_path, read):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for cell, message in (
        (None, "row 1 .from 0.: there is no image"),
        ({"bytes": b"x", "path": None}, "row 1 .* whole"),
    ):
        table = datasets.Dataset.from_dict({"image": [picture(0), cell], "label": [0, 1]}, features=features)
        table.save_to_disk(str(tmp_path / "train"))
        with pytest.raises(DataError, match=message):
            read()


def test_a_broken_image_of_a_table_is_told_by_its_place_alone(tmp_path, read):
    table = images([1, 2], [0, 1]).cast_column("img", datasets.Image(decode=False))
    rows = [{"img": {"bytes": b"no image", "path": None}, "label": 0}]
    datasets.Dataset.from_list(rows, features=table.features).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(DataError) as caught:
        read()
    wanted = f"'{tmp_path}' (train), column 'img', row 0 (from 0) is not a whole image: cannot identify image file"
    assert caught.value.message == wanted


def test_a_url_is_not_fetched(tmp_path, read):
    (tmp_path / "train.csv").write_text("image,label\nhttps://example.com/x.png,0\n")
    with pytest.raises(DataError, match="the image 'https://example.com/x.png' lies outside"):
        read()


def test_no_damage_of_the_cache_is_believed(tmp_path, read):
    lines = "".join(json.dumps({"inputs": n, "label": n % 2}) + "\n" for n in range(50))
    (tmp_path / "train.jsonl").write_text(lines)
    columns = {"inputs": ["inputs"], "label": ["label"]}
    first = read(columns=columns)
    (file,) = (tmp_path / "cache").rglob("*.arrow")
    whole, record = file.read_bytes(), file.with_name(f"{file.name}.crc32")
    number = whole.index(struct.pack("<q", 41))
    for content in (
        whole[:number] + b"\x07" + whole[number + 1 :],
        whole[: len(whole) // 2].ljust(len(whole), b"\0"),
        whole[:100],
    ):
        file.write_bytes(content)
        again = read(columns=columns)
        assert torch.equal(again.inputs, first.inputs) and torch.equal(again.targets, first.targets)
        assert file.read_bytes() == whole
    before = file.stat().st_mtime_ns
    read(columns=columns)
    assert file.stat().st_mtime_ns == before  # a whole one is used
    record.unlink()  # as a kill between the two leaves it
    assert torch.equal(read(columns=columns).inputs, first.inputs) and record.exists()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_what_is_compressed_is_not_unpacked(tmp_path, read, pack):
    (tmp_path / "train.csv").write_bytes(pack(b"inputs,label\n1,1\n" * 100))
    with pytest.raises(DataError, match="train.csv' is compressed, or an archive"):
        read(columns={"inputs": ["inputs"]})


def test_compressed_json_and_empty_tables_are_called_what_they_are(tmp_path, read):
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1, "label": 1}'))
    with pytest.raises(DataError, match="train.jsonl.gz' is compressed"):
        read(columns={"inputs": "x"})
    (tmp_path / "train.csv").write_text("")
    with pytest.raises(DataError, match="train.csv' is empty"):
        read(columns={"inputs": "x"})


def test_a_fifo_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(DataError, match="train.csv' is no regular file"):
        read(columns={"inputs": ["inputs"]})


@pytest.mark.parametrize("way", ["/etc/hostname", "{root}/../x.png", "../../x.png"])
def test_an_image_outside_the_data_set_is_not_read(tmp_path, read, way):
    way = way.format(root=tmp_path / "data")
    (tmp_path / "data").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    (tmp_path / "data/train.csv").write_text(f"image,label\n{way},0\n")
    with pytest.raises(DataError, match="lies outside"):
        read(root=tmp_path / "data")
    (tmp_path / "x.png").rename(tmp_path / "data/x.png")
    (tmp_path / "data/train.csv").write_text(f"image,label\n{tmp_path / 'data/x.png'},0\n")
    assert len(read(root=tmp_path / "data")) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.csv", 'a,b\n"1,2\n3'), ("train.json", '{"a":'), ("train.parquet", "PAR1 not")],
)
def test_a_damaged_file_is_named(tmp_path, read, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}' cannot be read: ."):
        read(columns={"inputs": "a", "target": "b"})


def test_no_rows_and_no_split(tmp_path, read):
    images([], []).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(DataError, match="train.parquet' cannot be read: .*no data"):
        read()
    with pytest.raises(DataError, match="has no file or folder of the split 'test'") as caught:
        read("test")
    assert any("train.parquet" in item for item in caught.value.items)
    assert caught.value.hint.startswith("check data.root in the spec")


def test_a_data_set_s_own_code_is_not_run(tmp_path, read):
    root = tmp_path / "set"
    root.mkdir()
    (root / "set.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    (root / "train.csv").write_text("a,b\n1,2\n")
    assert read(root=root, columns={"inputs": "a", "target": "b"}).inputs.tolist() == [[1]]
    assert not (root / "ran").exists()


def test_what_is_converted_stays_in_glue_s_own_cache(tmp_path, read, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home))
    file = tmp_path / "train.jsonl"
    file.write_text('{"a": 1, "b": 2}\n')
    os.utime(file, (1e9, 1e9))
    for cache in (tmp_path / "cache", None):
        assert read(cache=cache, columns={"inputs": "a", "target": "b"}).inputs.tolist() == [[1]]
    assert (tmp_path / "cache" / "huggingface").is_dir() and not home.exists()
    file.write_text('{"a": 7, "b": 2}\n')  # and does not outlive its file, whose time is that of an archive's member
    os.utime(file, (1e9, 1e9))
    assert read(columns={"inputs": "a", "target": "b"}).inputs.tolist() == [[7]]


@pytest.mark.parametrize(
    ("train", "test", "wanted"),
    [
        ("label\n1\n2\nx3\n", "label\n1\n2\n", [0, 1]),  # pandas makes numbers of the test split's
        ("label\n3\n1\n", "label\n1\n3\n", [1, 3]),
        ("label\npositive\nnegative\n", named([0, 1, 1], "positive", "negative"), [1, 0, 0]),
        (named([0, 1, 1], "positive", "negative"), "label\npositive\nnegative\n", [0, 1]),
        (named([0, 1, 1], "positive", "negative"), "label\n1\n0\n", [1, 0]),
        ("label\nTrue\nFalse\n", "label\n1\n0\n", [1, 0]),
    ],
)
def test_a_class_has_one_number_whatever_a_split_is_written_in(tmp_path, read, train, test, wanted):
    for name, content in (("train", train), ("test", test)):
        if isinstance(content, str):
            head, *rows = content.splitlines()
            (tmp_path / f"{name}.csv").write_text("\n".join([f"a,{head}", *(f"1,{row}" for row in rows)]))
        else:
            content.to_parquet(tmp_path / f"{name}.parquet")
    assert read("test", columns={"inputs": "a"}).targets.tolist() == wanted


def test_only_a_split_s_own_files_are_read_and_those_of_one_place(tmp_path, read):
    rows = "".join(json.dumps({"x": 1, "label": 0}) + "\n" for _ in range(3))
    (tmp_path / "data").mkdir()
    for name in ("train", "train-hard", "data/train-00000-of-00001"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    assert len(read(columns={"inputs": "x"})) == 3
    (tmp_path / "train.jsonl").rename(tmp_path / "data/train-00001-of-00003.jsonl")
    with pytest.raises(DataError, match="is one of 1 parts, of which 2 are there"):
        read(columns={"inputs": "x"})
    assert len(read(columns={"inputs": "x"}, splits={"train": "train-hard"})) == 3
    (tmp_path / "data/train-00000-of-00001.jsonl").rename(tmp_path / "data/train-00000-of-00003.jsonl")
    with pytest.raises(DataError, match="is one of 3 parts, of which 2 are there"):
        read(columns={"inputs": "x"})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("0.png", "lies in no class folder"),
        ("__background__/0.png", "passes over such a folder"),
        ("bee/0.png.bak", "takes it for an image"),
    ],
)
def test_folders_that_the_library_reads_otherwise_are_refused(tmp_path, read, path, message):
    for name in ("ant/0.png", path):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / name, format="png")
    with pytest.raises(DataError, match=message):
        read()


def test_datasets_missing(tmp_path, monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(huggingface, "import_module", refuse)
    data = DataSpec(format="huggingface", root=".")
    with pytest.raises(SpecError, match="needs the library datasets, which is not installed") as caught:
        read_huggingface(data, "train", root=tmp_path, cache=None, progress=print)
    assert caught.value.hint == "pip install 'glue-cli[hf]'"


def test_what_a_folder_of_images_holds_besides_is_counted(tmp_path):
    from glue_cli.foundation.progress import Noted

    for i, name in enumerate(["ant", "bee"]):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "train" / name / "0.png")
    Image.new("RGB", (4, 4), (9, 0, 0)).save(tmp_path / "train/bee/1.tiff")
    for path in ("notes.txt", "ant/list.txt"):
        (tmp_path / "train" / path).touch()
    data, events = DataSpec(format="huggingface", root="."), []
    found = read_dataset(data, "train", root=tmp_path, progress=events.append)
    assert sorted(found.inputs[:, 0, 0, 0].tolist()) == [0, 1, 9]
    assert [event.text for event in events if isinstance(event, Noted)] == [
        f"'{tmp_path}/train': 2 files passed over: 2 .txt",
        f"'{tmp_path}/train' has images of several kinds: 2 .png, 1 .tif",
    ]


def test_a_pointer_in_place_of_a_table_is_called_by_its_name(tmp_path, read):
    (tmp_path / "train.csv").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(DataError, match="train.csv' is a git-lfs pointer, not the data") as caught:
        read()
    assert "git lfs pull" in caught.value.hint


def test_images_that_were_not_fetched(tmp_path, read):
    (tmp_path / "train/ant").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train/ant/0.png")
    (tmp_path / "train/ant/1.png").symlink_to("gone.png")
    with pytest.raises(DataError, match="train' has 1 link"):
        read()


def test_numbers_of_classes_are_those_of_train_in_every_split(tmp_path, read):
    """As in the task mnli, of which copies number entailment and contradiction the other way round."""
    named([0, 1, 2], "entailment", "neutral", "contradiction").save_to_disk(str(tmp_path / "train"))
    named([0, 1, 2, 0], "contradiction", "neutral", "entailment").save_to_disk(str(tmp_path / "test"))
    test = read("test", columns={"inputs": "a"})
    assert test.targets.tolist() == [2, 1, 0, 2] and test.class_names == ("entailment", "neutral", "contradiction")
    assert read(columns={"inputs": "a"}).targets.tolist() == [0, 1, 2]


def test_a_class_that_train_lacks_counts_where_it_has_an_example(tmp_path, read):
    named([0, 1], "down", "up").save_to_disk(str(tmp_path / "train"))
    named([0, 2], "up", "silence", "down").save_to_disk(str(tmp_path / "val"))
    assert read("val", columns={"inputs": "a"}).targets.tolist() == [1, 0]
    named([0, 1], "up", "silence", "down").save_to_disk(str(tmp_path / "test"))
    with pytest.raises(DataError, match="the train split does not have: silence"):
        read("test", columns={"inputs": "a"})


def test_names_of_a_test_split_alone_count_as_they_are(tmp_path, read):
    named([1, 0], "up", "down").save_to_disk(str(tmp_path / "test"))
    assert read("test", columns={"inputs": "a"}).class_names == ("up", "down")
    named([1, 0]).save_to_disk(str(tmp_path / "train"))
    assert read("test", columns={"inputs": "a"}).targets.tolist() == [1, 0]


def test_paths_of_a_table_start_at_its_folder(tmp_path, read, monkeypatch):
    (tmp_path / "pictures").mkdir()
    for n in range(2):
        Image.new("RGB", (4, 3), (n, 0, 0)).save(tmp_path / "pictures" / f"{n}.png")
    (tmp_path / "train.csv").write_text("path,label\npictures/0.png,1\npictures/1.png,0\n")
    monkeypatch.chdir("/")
    found = read(columns={"image": "path"})
    assert found.inputs[:, 0, 0, 0].tolist() == [0, 1] and found.inputs.shape == (2, 3, 3, 4)
    (tmp_path / "train.csv").write_text("path,label\n../x.png,1\n")
    with pytest.raises(DataError, match="lies outside"):
        read(columns={"image": "path"})


def test_a_missing_number_is_told_with_its_row(tmp_path, read):
    (tmp_path / "train.csv").write_text("a,y\n1.5,2\n,3\n")
    with pytest.raises(DataError, match="column 'a', row 1 .from 0.: there is no number") as caught:
        read(columns={"inputs": "a", "target": "y"})
    assert "leave the row out" in caught.value.hint
    (tmp_path / "train.csv").write_text("a,y\n0.1,1\n0.2,2\nn.a.,3\n0.4,4\n")  # pandas makes text of all of them
    with pytest.raises(DataError, match="column 'a', row 2 .from 0.: found 'n.a.', wanted a number"):
        read(columns={"inputs": "a", "target": "y"})
