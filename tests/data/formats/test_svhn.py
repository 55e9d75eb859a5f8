import builtins

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


def test_missing_scipy_says_how_to_install_it(tmp_path, monkeypatch):
    write(tmp_path / "train_32x32.mat")
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match="needs scipy") as caught:
        read_dataset(DATA, "train", root=tmp_path)
    assert caught.value.hint == "pip install scipy"
