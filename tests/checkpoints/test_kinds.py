"""Files told by their first bytes, whatever they are called.

After IntelLabs/distiller#200, microsoft/OmniParser#34, and reports of downloads that are web pages or still packed.
"""

import gzip
import io
import tarfile

import pytest
import torch
from safetensors.torch import save, save_file

from glue_cli.checkpoints.kinds import kind_of
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.foundation.errors import CheckpointError

TENSORS = {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
SAFE = save(TENSORS)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 438012345\n" % 7


def of_torch(**options):
    buffer = io.BytesIO()
    torch.save({"state_dict": TENSORS, "epoch": 3}, buffer, **options)
    return buffer.getvalue()


def tar_of(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("model.safetensors")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["x", "x.ckpt", "x.pth.tar", "x.safetensors", "x.bin", "x.model", "x.tar"])
@pytest.mark.parametrize("content", [SAFE, of_torch()], ids=["safetensors", "torch"])
def test_the_name_does_not_count(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    found = read_tensors(read_checkpoint(path))
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[key], TENSORS[key]) for key in TENSORS)


@pytest.mark.parametrize("name", ["x", "x.bin", "x.pt", "x.safetensors"])
@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (POINTER, "a git-lfs pointer", "git lfs pull"),
        (b"/annex/objects/SHA256E-s4380--ab.safetensors\n", "a git-annex pointer", "git annex get"),
        (b"GGUF\3\0\0\0" + bytes(40), "a GGUF file", "converted from"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file", "the library that wrote it"),
        (gzip.compress(SAFE), "compressed with gzip", "gunzip"),
        (tar_of(SAFE), "a tar archive", "tar xf"),
        (b"\x93NUMPY\1\0v\0{'descr'", "an array of NumPy", "NumPy"),
        (b"\n<!DOCTYPE html>\n<title>Sign in</title>", "a web page", "a login"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page", "a login"),
    ],
    ids=["pointer", "annex", "gguf", "hdf5", "gzip", "tar", "numpy", "page", "error"],
)
def test_what_is_no_file_of_weights_is_called_by_its_name(tmp_path, name, content, what, hint):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert f"'{path}' is {what}" in caught.value.message and hint in caught.value.hint


def test_a_header_whose_length_begins_like_another_file(tmp_path):
    for length, beginning in ((0x3C, b"<"), (0x8B1F, b"\x1f\x8b")):
        padding = "x" * (length - len('{"__metadata__":{"a":""}}'))
        header = f'{{"__metadata__":{{"a":"{padding}"}}}}'.encode()
        path = tmp_path / f"{length}"
        path.write_bytes(length.to_bytes(8, "little") + header)
        assert path.read_bytes().startswith(beginning) and read_checkpoint(path).metadata["a"] == padding


def test_shards_are_told_too(tmp_path):
    save_file(TENSORS, tmp_path / "one.bin")
    (tmp_path / "two.bin").write_bytes(POINTER)
    index = tmp_path / "x.index.json"
    index.write_text('{"weight_map": {"w": "one.bin", "b": "one.bin"}}')
    assert torch.equal(read_tensors(read_checkpoint(index))["w"], TENSORS["w"])
    index.write_text('{"weight_map": {"w": "one.bin", "b": "two.bin"}}')
    with pytest.raises(CheckpointError, match="two.bin' is a git-lfs pointer"):
        read_checkpoint(index)


def test_where_the_bytes_do_not_tell_the_suffix_does(tmp_path):
    for name, wanted in (("x.pt", "torch"), ("x.safetensors", "safetensors"), ("x", "safetensors")):
        (tmp_path / name).write_bytes(b"no such thing")
        assert kind_of(tmp_path / name) == wanted


# ---- folders


def write(folder, *names):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        save_file({"w": torch.full((2,), float(number))}, path)
    return folder


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["model-1.safetensors", "model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model-1.safetensors", "pytorch_model.bin"], "model-1.safetensors"),
        (["pytorch_model.bin", "model.fp16.safetensors"], "pytorch_model.bin"),
    ],
)
def test_a_folder_with_two_sets_is_read_as_from_pretrained_reads_it(tmp_path, names, wanted):
    folder = write(tmp_path / "m", *names)
    if "model-1.safetensors" in names:
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-1.safetensors"}}')
    assert [file.name for file in read_checkpoint(folder).files] == [wanted]


def test_transformers_reads_the_single_file_beside_the_shards(tmp_path, torchvision):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
    )
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.fill_(3)
    save_file(
        {name: t.clone() for name, t in model.state_dict().items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded = transformers.BertModel.from_pretrained(tmp_path).embeddings.word_embeddings.weight
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(read_tensors(read_checkpoint(tmp_path))[name], loaded.detach()) and loaded[0, 0] == 3


def test_folders_without_a_model_say_what_they_hold(tmp_path):
    def refused(folder):
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(folder)
        return caught.value

    pipeline = write(tmp_path / "pipeline", "unet/diffusion_pytorch_model.safetensors", "vae/model.safetensors")
    (pipeline / "model_index.json").write_text("{}")
    error = refused(pipeline)
    assert "a pipeline of several models" in error.message
    assert error.items == (str(pipeline / "unet"), str(pipeline / "vae"))
    assert "holds an adapter" in refused(write(tmp_path / "adapter", "adapter_model.safetensors")).message
    several = write(tmp_path / "several", "step-1.safetensors", "step-2.safetensors", "last.ckpt")
    assert [item.rpartition("/")[2] for item in refused(several).items] == [
        "last.ckpt",
        "step-1.safetensors",
        "step-2.safetensors",
    ]
