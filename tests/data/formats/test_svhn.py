import struct

import numpy
import pytest
import scipy.io
import torch

from glue_cli.data import read_dataset
from glue_cli.foundation.errors import DataError
from glue_cli.spec.schema import DataSpec

DATA = DataSpec(format="svhn", root=".")


def write(path, **arrays):
    rng = numpy.random.default_rng(0)
    official = {
        "X": rng.integers(0, 256, (32, 32, 3, 6), numpy.uint8),
        "y": numpy.array([[10], [1], [9], [2], [10], [5]], numpy.uint8),
    }
    scipy.io.savemat(path, {**official, **arrays}, do_compression=True)
    return official["X"]


def test_reads_the_official_layout(tmp_path):
    pixels = write(tmp_path / "train_32x32.mat")
    dataset = read_dataset(DATA, "train", root=tmp_path)
    assert dataset.inputs.shape == (6, 3, 32, 32) and dataset.inputs.is_contiguous()
    assert torch.equal(dataset.inputs[4, 2], torch.from_numpy(pixels[:, :, 2, 4].copy()))
    assert dataset.targets.dtype == torch.int64 and dataset.targets.tolist() == [0, 1, 9, 2, 0, 5]
    assert dataset.class_names == tuple("0123456789")
    assert read_dataset(DATA, "val", root=tmp_path) is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": numpy.zeros((32, 32, 3, 6))}, r"'X' is float64 \[32, 32, 3, 6\], wanted uint8 \[32, 32, 3, N\]"),
        ({"X": numpy.zeros((28, 28, 3, 6), numpy.uint8)}, r"'X' is uint8 \[28, 28, 3, 6\]"),
        ({"y": numpy.ones((5, 1))}, r"'y' is float64 \[5, 1\], wanted \[6, 1\]"),
        ({"y": numpy.array([[1], [2], [11], [1], [1], [1]])}, r"'y' is 11 for image 2 \(from 0\), wanted 1 to 10"),
        ({"y": numpy.array([[1], [2], [0], [1], [1], [1]])}, "'y' is 0 for image 2"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    write(tmp_path / "test_32x32.mat", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(DATA, "test", root=tmp_path)
    assert "test_32x32.mat" in caught.value.message


def test_missing_array(tmp_path):
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": numpy.zeros((32, 32, 3, 1), numpy.uint8)})
    with pytest.raises(DataError, match="train_32x32.mat' has no array 'y'"):
        read_dataset(DATA, "train", root=tmp_path)


@pytest.mark.parametrize("n_bytes", [0, 60, 200, 5_000])
def test_truncated_file(tmp_path, n_bytes):
    path = tmp_path / "train_32x32.mat"
    write(path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(DataError, match="train_32x32.mat' (is not a whole MATLAB file|has no array)"):
        read_dataset(DATA, "train", root=tmp_path)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", "int64"])
def test_labels_of_every_kind_with_and_without_compression(tmp_path, compressed, dtype):
    arrays = {"X": numpy.arange(3072 * 7, dtype=numpy.uint8).reshape(32, 32, 3, 7), "other": "text", "z": numpy.eye(2)}
    arrays["y"] = numpy.arange(1, 8).reshape(7, 1).astype(dtype)
    scipy.io.savemat(tmp_path / "test_32x32.mat", arrays, do_compression=compressed)
    dataset = read_dataset(DATA, "test", root=tmp_path)
    assert dataset.targets.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert torch.equal(dataset.inputs, torch.from_numpy(arrays["X"]).permute(3, 2, 0, 1))


def test_a_file_of_the_other_byte_order(tmp_path):
    rng = numpy.random.default_rng(1)
    pixels = rng.integers(0, 256, (32, 32, 3, 2), numpy.uint8)

    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    def array(name, kind, shape, stored, data):
        start = element(6, struct.pack(">II", kind, 0)) + element(5, struct.pack(f">{len(shape)}i", *shape))
        return element(14, start + element(1, name) + element(stored, data))

    content = b"MATLAB 5.0".ljust(124) + b"\x01\x00MI"
    content += array(b"X", 9, pixels.shape, 2, pixels.tobytes("F"))
    content += array(b"y", 6, (2, 1), 9, struct.pack(">2d", 10.0, 3.0))
    (tmp_path / "test_32x32.mat").write_bytes(content)
    dataset = read_dataset(DATA, "test", root=tmp_path)
    assert dataset.targets.tolist() == [0, 3]
    assert torch.equal(dataset.inputs, torch.from_numpy(pixels).permute(3, 2, 0, 1))


def test_a_file_that_claims_far_more_than_it_is(tmp_path):
    path = tmp_path / "train_32x32.mat"
    write(path, X=numpy.zeros((32, 32, 3, 40_000), numpy.uint8))
    assert path.stat().st_size < 500_000
    with pytest.raises(DataError, match="an array of 122,880,[0-9]+ bytes lies in a file of"):
        read_dataset(DATA, "train", root=tmp_path)


def test_damaged_bytes_are_refused_or_read_as_scipy_reads_them(tmp_path, how_many):
    path = tmp_path / "train_32x32.mat"
    X = numpy.random.default_rng(3).integers(0, 256, (32, 32, 3, 2), numpy.uint8)
    n_read = n_like_scipy = 0
    for compressed in (True, False):
        scipy.io.savemat(path, {"X": X, "y": numpy.array([[1], [2]])}, do_compression=compressed)
        whole = path.read_bytes()
        draws = numpy.random.default_rng(2)
        for _ in range(how_many(300, 30_000)):
            content = bytearray(whole)
            for at in draws.integers(0, min(len(whole), 300), draws.integers(1, 4)):
                content[at] ^= 1 << draws.integers(8)
            path.write_bytes(content)
            try:
                dataset = read_dataset(DATA, "train", root=tmp_path)
            except DataError as error:
                assert str(path) in error.message
                continue
            n_read += 1
            try:
                arrays = scipy.io.loadmat(path)
            except Exception:  # scipy reads parts of the file that are not needed, and that may be damaged
                continue
            n_like_scipy += 1
            assert torch.equal(dataset.inputs, torch.from_numpy(arrays["X"].copy()).permute(3, 2, 0, 1))
            assert dataset.targets.tolist() == [int(label) % 10 for label in arrays["y"].flatten()]
    assert n_like_scipy > n_read / 2 > 0
