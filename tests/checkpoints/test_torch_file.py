import hashlib
import io
import json
import pickle
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.torch_version import TorchVersion

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import TORCH_DTYPES, read_tensors
from glue_cli.foundation.errors import CheckpointError


@pytest.fixture
def save_torch(tmp_path):
    def save_torch(content, name="x.pt", **options):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        torch.save(content, path, **options)
        return path

    return save_torch


def same(left, right):
    """Tell whether tensors have the same dtype, shape and bits."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return torch.equal(left.detach().reshape(-1).view(torch.uint8), right.detach().reshape(-1).view(torch.uint8))


def refused(path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize("dtype", TORCH_DTYPES.values(), ids=str)
def test_the_bits_are_those_that_torch_loads(save_torch, dtype):
    raw = torch.randint(0, 2, (3, 16), dtype=torch.uint8)
    tensors = {"w": raw.view(dtype), "scalar": raw.view(dtype)[0, 0].clone(), "empty": raw.view(dtype)[:0].clone()}
    path = save_torch(tensors)
    found, wanted = read_tensors(read_checkpoint(path)), torch.load(path, weights_only=True)
    assert list(found) == list(wanted) and all(same(found[name], wanted[name]) for name in wanted)


def test_a_networks_own_state_dict(save_torch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    found = read_checkpoint(save_torch(network.state_dict(), "x.pth"))
    tensors = read_tensors(found)
    assert list(tensors) == list(network.state_dict()) and found.metadata == {} and found.glue == {}
    assert all(same(tensors[name], tensor) for name, tensor in network.state_dict().items())
    offsets = [entry.offset for entry in found.entries.values()]
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("version", [torch.__version__, TorchVersion("2.7.0")], ids=["this", "older"])
def test_tied_tensors_views_and_parameters(save_torch, monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    weight = torch.arange(24.0).view(4, 6)
    tensors = {
        "weight": weight,
        "tied": weight,
        "rows": weight[1:3],
        "row": weight[2],
        "number": weight[3, 5],
        "column": weight[:, :1][2:3],
        "learned": nn.Parameter(torch.ones(2)),
    }
    found = read_checkpoint(save_torch(tensors))
    assert all(same(tensor, tensors[name]) for name, tensor in read_tensors(found).items())
    assert found.entries["rows"].offset == found.entries["weight"].offset + 24


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint(save_torch, key):
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {"epoch": 3, "optimizer": optimizer.state_dict(), "loss": torch.tensor(0.5), key: layer.state_dict()}
    found = read_tensors(read_checkpoint(save_torch(content)))
    assert found.keys() == {"weight", "bias"} and same(found["weight"], layer.weight)


def test_a_parameter_called_model_is_a_tensor_like_others(save_torch):
    assert list(read_checkpoint(save_torch({"model": torch.ones(1), "w": torch.ones(2)})).entries) == ["model", "w"]


def test_tensors_saved_on_a_gpu(save_torch):
    path = save_torch({"w": torch.arange(6.0).view(2, 3), "v": torch.ones(3)})
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("x/data.pkl")
        records = [archive.read(f"x/data/{key}") for key in (0, 1)]
    text = pickled.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, record in [("data.pkl", text), ("data/0", records[0]), ("data/1", records[1])]:
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    assert text != pickled
    assert same(read_tensors(read_checkpoint(path))["w"], torch.arange(6.0).view(2, 3))


def test_a_file_that_changed_since_its_header_was_read(save_torch):
    found = read_checkpoint(save_torch({"w": torch.zeros(3)}))
    save_torch({"w": torch.zeros(30)})
    with pytest.raises(CheckpointError, match=r"x\.pt' changed while it was read"):
        read_tensors(found)


# ---- Hugging Face folders


def test_a_hugging_face_folder(save_torch, tmp_path):
    save_torch({"a": torch.ones(2)}, "model/pytorch_model.bin")
    assert same(read_tensors(read_checkpoint(tmp_path / "model"))["a"], torch.ones(2))


def test_a_hugging_face_folder_of_shards(save_torch, tmp_path, save):
    save_torch({"a": torch.ones(2), "c": torch.zeros(1)}, "model/pytorch_model-00001-of-00002.bin")
    save_torch({"b": torch.ones(3)}, "model/pytorch_model-00002-of-00002.bin")
    shards = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index = tmp_path / "model" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    for path in (tmp_path / "model", index):
        found = read_checkpoint(path)
        assert {name: found.files[entry.file].name for name, entry in found.entries.items()} == shards
        assert same(read_tensors(found)["b"], torch.ones(3))
    save("model/model", {"a": torch.zeros(5)})
    assert read_checkpoint(tmp_path / "model").entries["a"].shape == (5,)


# ---- blends


def experts():
    return [
        {
            "z.weight": torch.randn(300, 7),
            "a.weight": torch.randn(40, 3, 3),
            "bn.num_batches_tracked": torch.tensor(k),
            "ids": torch.arange(5),
        }
        for k in range(2)
    ]


def test_a_blend_is_that_of_the_same_experts_as_safetensors(save_torch, save, blend):
    first, second = experts()
    saved = [save("first", first), save("second", second)]
    from_torch = [read_checkpoint(save_torch(first, "first.pt")), read_checkpoint(save_torch(second, "second.bin"))]
    contents = set()
    for pair in (saved, from_torch, [from_torch[0], saved[1]], [saved[0], from_torch[1]]):
        for options in ({}, {"hashes": ()}, {"memory_bytes": 4096, "n_threads": 3}):
            blend(pair, [0.3, 0.7], **options)
            contents.add(blend.path.read_bytes())
            if "hashes" not in options:
                digests = [hashlib.sha256(expert.files[0].read_bytes()).hexdigest() for expert in pair]
                assert blend.hashes == digests
    assert len(contents) == 1


def test_a_one_hot_blend_returns_the_experts_bits(save_torch, blend):
    pair = [read_checkpoint(save_torch(tensors, f"{k}.pt")) for k, tensors in enumerate(experts())]
    wanted = torch.load(pair[1].files[0], weights_only=True)
    assert all(same(tensor, wanted[name]) for name, tensor in blend(pair, [0.0, 1.0]).items())


# ---- refused


class Touch:
    """What pickle runs when it meets one of these."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_is_run(save_torch, tmp_path, legacy):
    trace = tmp_path / "trace"
    path = save_torch({"w": torch.ones(2), "evil": Touch(trace)}, _use_new_zipfile_serialization=not legacy)
    torch.load(path, weights_only=False)
    assert trace.exists()
    trace.unlink()
    refused(path)
    path.write_bytes(pickle.dumps(Touch(trace)))
    refused(path)
    assert not trace.exists()


def test_whole_models_and_other_objects_are_refused(save_torch):
    error = refused(save_torch(nn.Linear(2, 2)))
    assert "holds objects other than tensors" in error.message and "torch.nn.modules.linear.Linear" in error.items
    error = refused(save_torch({"w": torch.ones(1), "path": Path("x")}))
    assert error.items == (f"{Path('x').__module__}.PosixPath",) and "state_dict() again" in error.hint
    assert "has a list, not a state dict" in refused(save_torch([torch.ones(1)])).message
    assert "has a tensor, not a state dict" in refused(save_torch(torch.ones(1))).message
    error = refused(save_torch({"w": torch.ones(1), "epoch": 3, 5: torch.ones(1), "nets": {"w": torch.ones(1)}}))
    assert "has more than tensors" in error.message and "is_tensor" in error.hint
    assert error.items == ("'epoch': int", "5: tensor", "'nets': dict")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"model": {"encoder": {"w": torch.ones(2)}, "decoder": {"w": torch.ones(2)}}}, "encoder.w"),
        ({0: torch.ones(2), 1: torch.ones(3)}, "0"),
        ({"w": torch.ones(2), "epoch": 3, "a": {"b": 1}}, "w"),
        ({"w": torch.eye(3).to_sparse()}, "w"),
    ],
)
def test_following_the_hint_makes_a_checkpoint(save_torch, content, name):
    error = refused(save_torch(content))
    code = error.hint[error.hint.index("{") :]
    names = {"checkpoint": content, "state_dict": content, "is_tensor": torch.is_tensor}
    assert name in read_checkpoint(save_torch(eval(code, names))).entries


def test_arrays_of_numpy_are_called_so(tmp_path):
    numpy = pytest.importorskip("numpy")
    numpy.savez(tmp_path / "a.npz", w=numpy.ones(2))
    assert "holds arrays of NumPy" in refused(tmp_path / "a.npz").message


def test_tensors_that_do_not_lie_row_major_are_refused_by_name(save_torch):
    weight = torch.ones(2, 3, 4, 5)
    error = refused(
        save_torch(
            {
                "plain": weight,
                "last": weight.to(memory_format=torch.channels_last),
                "turned": weight.transpose(0, 1),
                "part": weight[..., 1:],
                "spread": torch.ones(1).expand(3),
                "sparse": torch.eye(3).to_sparse(),
                "mirrored": torch.ones(2, dtype=torch.complex64).conj(),
            }
        )
    )
    assert [item.split("'")[1] for item in error.items] == ["last", "turned", "part", "spread", "sparse", "mirrored"]
    assert "[2, 3, 4, 5], strides [60, 1, 15, 3]" in error.items[0] and "contiguous()" in error.hint


def test_unknown_dtypes_are_refused(save_torch):
    error = refused(save_torch({"w": torch.ones(2, dtype=torch.complex128)}))
    assert "'w' has the dtype 'torch.complex128'" in error.message and "complex64" in error.hint


@pytest.mark.parametrize(
    "content",
    [
        {"state": {0: {"step": torch.ones(2)}}, "param_groups": []},
        {"optimizer_state_dict": {"base_optimizer_state": {"state": {}}, "zero_stage": 2}, "ds_version": "0.14"},
        {"optimizer": {"state": {}, "param_groups": []}, "lr_scheduler": {"last_epoch": 3}, "epoch": 3},
    ],
)
def test_the_state_of_an_optimiser_alone_is_no_model(save_torch, content):
    assert "holds the state of an optimiser, and no model" in refused(save_torch(content)).message


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning")
def test_quantised_tensors_are_refused_without_a_warning_of_torch(save_torch, recwarn):
    path = save_torch({"w": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)})
    recwarn.clear()
    error = refused(path)
    assert "has quantised tensors" in error.message and "before quantisation" in error.hint and not recwarn.list


def test_files_before_pytorch_1_6_are_refused(save_torch):
    error = refused(save_torch({"w": torch.ones(2)}, _use_new_zipfile_serialization=False))
    assert "was not saved by torch.save since PyTorch 1.6" in error.message and "save" in error.hint


def test_every_cut_is_noticed(save_torch):
    path = save_torch({"w": torch.ones(30), "b": torch.ones(2)})
    content = path.read_bytes()
    for length in range(7, len(content), 7):
        path.write_bytes(content[:length])
        assert "cut short" in refused(path).message


def rewrite(path, **options):
    """Pack an archive anew, as another program would."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_that_other_programs_rewrote_are_refused(save_torch, compression):
    path = save_torch({"w": torch.ones(30), "b": torch.ones(2)})
    rewrite(path, compression=compression)
    assert "does not lie where PyTorch looks for it" in refused(path).message


def test_a_tensor_larger_than_its_storage_is_refused(save_torch):
    path = save_torch({"w": torch.ones(5)})
    sized, oversized = b"K\x00K\x05\x85", b"K\x00K\x7f\x85"  # the pickle's offset 0 and size (5,) or (127,)
    content = path.read_bytes()
    assert content.count(sized) == 1
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("x/data.pkl")
    checksums = [zlib.crc32(data).to_bytes(4, "little") for data in (pickled, pickled.replace(sized, oversized))]
    path.write_bytes(content.replace(sized, oversized).replace(*checksums))
    assert "'w' does not lie where PyTorch looks for it" in refused(path).message


def test_big_endian_files_and_torchscript_are_refused(save_torch):
    for name, content, message in [
        ("byteorder", b"big", "was saved on a big-endian machine"),
        ("constants.pkl", b"", "is a TorchScript archive"),
    ]:
        path = save_torch({"w": torch.ones(30)})
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in (members | {f"x/{name}": content}).items():
                archive.writestr(member, data)
        assert message in refused(path).message


def record_with(save_torch, name, content, compression):
    """Return a file of torch's one record of which is another, compressed in that way."""
    path = save_torch({"w": torch.ones(30)})
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist() if member != f"x/{name}"}
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"x/{name}", content, compress_type=compression)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_record_whose_compression_is_damaged_is_refused(save_torch, compression):
    path = record_with(save_torch, "byteorder", b"little" * 40, compression)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("x/byteorder")
    content = bytearray(path.read_bytes())
    start = member.header_offset + 30 + len(member.filename)
    for position in range(start, start + member.compress_size):
        damaged = content.copy()
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        refused(path)


def test_pickles_that_take_more_than_the_file_are_refused(save_torch):
    bomb = record_with(save_torch, "data.pkl", bytes(100_000_000), zipfile.ZIP_DEFLATED)
    assert "has a pickle of 100.0 MB in" in refused(bomb).message
    with open(bomb, "wb") as file:
        torch.save({"w": torch.ones(3), "b": bytearray(5)}, file)
    assert "makes a bytearray" in refused(bomb).message


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"")
    assert refused(tmp_path / "x.pt").message.endswith("x.pt' is empty")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match="holds no model.safetensors or pytorch_model.bin"):
        read_checkpoint(tmp_path / "folder.pt")


def good():
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(4, 5), "b": torch.ones(5)[1:]}, buffer)
    return buffer.getvalue()


GOOD = good()
flips = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(flips)
def test_a_damaged_file_is_refused_or_its_tensors_lie_within_it(tmp_path_factory, found):
    content = bytearray(GOOD)
    for position, flip in found:
        content[position] ^= flip
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    path.write_bytes(content)
    try:
        entries = read_checkpoint(path).entries
    except CheckpointError as error:
        assert str(path) in error.message
    else:
        assert all(0 <= entry.offset <= len(GOOD) - entry.n_bytes for entry in entries.values())
