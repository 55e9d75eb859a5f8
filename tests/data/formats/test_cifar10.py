import os
import pickle
import struct

import numpy
import pytest
import torch

from glue_cli.data import read_dataset
from glue_cli.data.formats import cifar10
from glue_cli.foundation.errors import DataError
from glue_cli.spec.schema import DataSpec

DATA = DataSpec(format="cifar10", root=".")
N = 4  # records a file, in place of 10,000
NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


@pytest.fixture(autouse=True)
def few_records(monkeypatch, request):
    if request.node.name != "test_real_cifar10":
        monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", N)


def make_batches():
    rng = numpy.random.default_rng(0)
    return {name: (rng.integers(0, 256, (N, 3072), numpy.uint8), rng.integers(0, 10, N).tolist()) for name in NAMES}


def write_binary(folder):
    folder.mkdir(exist_ok=True)
    batches = make_batches()
    for name, (pixels, labels) in batches.items():
        records = [bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True)]
        (folder / f"{name}.bin").write_bytes(b"".join(records))
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    return batches


def write_python(folder, as_bytes=True, protocol=2):
    folder.mkdir(exist_ok=True)
    batches = make_batches()

    def key(name):
        return name.encode() if as_bytes else name

    for name, (pixels, labels) in batches.items():
        batch = {key("batch_label"): key("x"), key("labels"): labels, key("data"): pixels, key("filenames"): []}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    meta = {key("label_names"): [key(letter) for letter in "abcdefghij"], key("num_vis"): 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    return batches


def check(root, batches, class_names=tuple("abcdefghij")):
    for split, names in (("train", NAMES[:5]), ("test", NAMES[5:])):
        dataset = read_dataset(DATA, split, root=root)
        pixels = numpy.concatenate([batches[name][0] for name in names])
        assert dataset.inputs.dtype == torch.uint8 and dataset.targets.dtype == torch.int64
        assert torch.equal(dataset.inputs, torch.from_numpy(pixels).view(-1, 3, 32, 32))
        assert dataset.targets.tolist() == [label for name in names for label in batches[name][1]]
        assert dataset.class_names == class_names
    assert read_dataset(DATA, "val", root=root) is None


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
def test_binary_layout(tmp_path, folder):
    check(tmp_path, write_binary(tmp_path / folder))


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-py"])
@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_python_layout(tmp_path, folder, as_bytes, protocol):
    check(tmp_path, write_python(tmp_path / folder, as_bytes, protocol))


def test_python_layout_as_python_2_wrote_it(tmp_path):
    """The opcodes of the official files, whose text and pixels are Python 2 strings."""
    batches = make_batches()

    def text(value):
        return b"U" + bytes([len(value)]) + value

    for name, (pixels, labels) in batches.items():
        raw = pixels.tobytes()
        dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
        dtype += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
        array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        array += b"(K\x01M" + struct.pack("<H", N) + b"M\x00\x0c\x86" + dtype
        array += b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
        counts = b"(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
        entries = text(b"batch_label") + text(b"one") + text(b"labels") + b"]" + counts + text(b"data") + array
        (tmp_path / name).write_bytes(b"\x80\x02}(" + entries + b"u.")
    check(tmp_path, batches, class_names=cifar10.CLASS_NAMES)


def test_real_numpy_agrees_with_the_python_2_opcodes(tmp_path):
    test_python_layout_as_python_2_wrote_it(tmp_path)
    loaded = pickle.loads((tmp_path / "test_batch").read_bytes(), encoding="bytes")
    assert numpy.array_equal(loaded[b"data"], make_batches()["test_batch"][0])


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_a_pickle_that_calls_something_is_refused_and_not_run(tmp_path, name):
    write_python(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps({b"data": Attack(tmp_path / "owned")}, 2))
    with pytest.raises(DataError, match=rf"{name}': the pickle names '(posix|nt)\.system'.*was not run"):
        read_dataset(DATA, "train", root=tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"c_codecs\nencode\n(S'a'\nS'zlib'\ntR.", "not a whole pickle"),
        (b"cnumpy\nndarray\n)R(K\x01)NNNtb.", "not a whole pickle"),
        (b"]q\x00.", "holds a list, wanted a dictionary"),
        (b"]r\xff\xff\xff\x7f.", "holds a list, wanted a dictionary"),  # 16 GB to Python's own reader
        (b"})" + b"2\x86" * 100 + b"K\x01s.", "takes the step DUP"),  # 2**100 steps to look up
        (b"})q\x00" + b"h\x00\x86q\x00" * 100 + b"K\x01s.", "key of a dictionary is no text"),
        (b"\x80\x04\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "is damaged"),
        (b"\x80\x02T\xff\xff\xff\x7f.", "is damaged"),
        (b"}I1\nI2\ns.", "key of a dictionary is no text"),
        (b"h\x05.", "is damaged"),
        (
            b"c_codecs\nencode\nq\x00V" + b"a" * 99 + b"\nX\x06\x00\x00\x00latin1\x86q\x01R" + b"h\x00h\x01R" * 9,
            "encodes more",
        ),
        (b"cnumpy\ndtype\n)" + b"\x85q\x00h\x00\x86" * 60 + b"\x85R.", "is damaged"),
        (b"e.", "is damaged"),
        (b"NR.", "is damaged"),
        (b"", "not a whole pickle"),
        (b"}.", "no array 'data'"),
    ],
)
def test_other_pickles_are_refused(tmp_path, payload, message):
    write_python(tmp_path)
    (tmp_path / "test_batch").write_bytes(payload)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(DATA, "test", root=tmp_path)
    assert str(tmp_path / "test_batch") in caught.value.message


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": numpy.zeros((3, 3072), numpy.uint8), "labels": [0] * N}, r"'data' of shape \[3, 3072\]"),
        ({"data": numpy.zeros((N, 3072), numpy.int32), "labels": [0] * N}, "no array 'data' of uint8"),
        ({"data": numpy.zeros((N, 3072), numpy.uint8, "F"), "labels": [0] * N}, "column-major"),
        ({"data": numpy.zeros((N, 3072), numpy.uint8), "labels": [0]}, "found 1 labels, wanted 4"),
        ({"data": numpy.zeros((N, 3072), numpy.uint8), "labels": ["0"] * N}, "no list 'labels' of integers"),
        ({"data": numpy.zeros((N, 3072), numpy.uint8), "labels": [0, 1, -1, 2]}, "record 2 .from 0. has label -1"),
    ],
)
def test_python_batches_of_another_form_are_refused(tmp_path, batch, message):
    write_python(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(DataError, match=message):
        read_dataset(DATA, "test", root=tmp_path)


def test_missing_batch_is_named(tmp_path):
    write_binary(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match="data_batch_4.bin' is missing"):
        read_dataset(DATA, "train", root=tmp_path)
    assert len(read_dataset(DATA, "test", root=tmp_path)) == N


@pytest.mark.parametrize("n_bytes", [0, 3073 * N - 1, 3073 * (N - 1), 3073 * (N + 1)])
def test_truncated_file_is_named(tmp_path, n_bytes):
    write_binary(tmp_path)
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(path.read_bytes().ljust(n_bytes, b"\0")[:n_bytes])
    with pytest.raises(DataError, match=f"data_batch_2.bin': found {n_bytes:,} bytes, wanted 12,292"):
        read_dataset(DATA, "train", root=tmp_path)


def test_label_above_9_is_named(tmp_path):
    write_binary(tmp_path)
    path = tmp_path / "data_batch_5.bin"
    content = bytearray(path.read_bytes())
    content[2 * 3073] = 10
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_5.bin': record 2 \(from 0\) has label 10, wanted 0 to 9"):
        read_dataset(DATA, "train", root=tmp_path)


def test_class_names_must_be_ten(tmp_path):
    write_binary(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match="batches.meta.txt': found 2 class names, wanted 10"):
        read_dataset(DATA, "train", root=tmp_path)
    (tmp_path / "batches.meta.txt").unlink()
    assert read_dataset(DATA, "test", root=tmp_path).class_names == cifar10.CLASS_NAMES


def test_real_cifar10(find_real):
    root = find_real("cifar-10-batches-bin")
    train, test = (read_dataset(DATA, split, root=root) for split in ("train", "test"))
    assert train.inputs.shape == (50_000, 3, 32, 32) and test.inputs.shape == (10_000, 3, 32, 32)
    assert train.targets.bincount().tolist() == [5_000] * 10 and test.targets.bincount().tolist() == [1_000] * 10
    assert train.class_names == cifar10.CLASS_NAMES
    mean = train.inputs.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-3)
