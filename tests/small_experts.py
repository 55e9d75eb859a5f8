"""Small experts on disk, and what searches them."""

import json
from pathlib import Path

import pytest
import torch
from destinations import destination_of
from safetensors.torch import load_file, save_file
from small_nets import batch_of, make_experts

from glue_cli.blend import to_files as blend_module
from glue_cli.blend.recipe import PLAIN
from glue_cli.blend.to_files import blend_files
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import FILE_DTYPES, write_checkpoint
from glue_cli.running.device import Compute, find_device, make_repeatable
from glue_cli.search.bank.load import load_bank
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.criterion import Criterion, criterion_of
from glue_cli.search.objective import BlendObjective, Minibatches
from glue_cli.spec.goal import Goal


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def save(tmp_path):
    """Save tensors with safetensors' own writer, and read the header back."""

    def save(name, tensors, metadata=None):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata)
        return read_checkpoint(path)

    return save


@pytest.fixture
def save_in_order(tmp_path):
    """Save tensors in the very order given, which another tool may choose otherwise than safetensors does."""

    def save_in_order(name, tensors):
        header, data = {}, b""
        for key, tensor in tensors.items():
            raw = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
            offsets = [len(data), len(data) + len(raw)]
            header[key] = {"dtype": FILE_DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            data += raw
        text = json.dumps(header).encode()
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        return read_checkpoint(path)

    return save_in_order


@pytest.fixture
def save_shards(tmp_path):
    """Save tensors as a Hugging Face folder of two shards with an index; the names' order decides who goes where."""

    def save_shards(name, tensors):
        folder = tmp_path / name
        folder.mkdir()
        names = list(tensors)
        parts = [names[: len(names) // 2], names[len(names) // 2 :]]
        weight_map = {}
        for number, part in enumerate(parts, 1):
            shard = f"model-{number:05d}-of-00002.safetensors"
            save_file({key: tensors[key] for key in part}, folder / shard)
            weight_map |= dict.fromkeys(part, shard)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return read_checkpoint(folder)

    return save_shards


@pytest.fixture
def blend(tmp_path):
    """Blend experts into a file of constant metadata; return its tensors as safetensors reads them."""

    def blend(experts, alpha, name="blend", dtype=None, **options):
        path = blend.path = tmp_path / f"{name}.safetensors"
        destination = destination_of(path, experts, dtype=dtype)
        options.setdefault("hashes", [StreamedHash(expert) for expert in experts])
        blend.hashes = blend_files(experts, [alpha], destination, lambda hashes: {}, **options)
        return load_file(path)

    return blend


@pytest.fixture
def small_blocks(monkeypatch):
    """Cut blends into blocks of one chunk, of which several threads find some to do."""
    monkeypatch.setattr(blend_module, "SLOT_BYTES", 1)


@pytest.fixture
def golden():
    return Path(__file__).parent / "golden"


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    device = find_device("cuda:0")
    make_repeatable(device)
    return device


def of_loss(loss):
    return criterion_of("loss", loss, Path("."))


_ON_CPU = Compute(torch.device("cpu"))


@pytest.fixture
def objective_of(tmp_path):
    def objective_of(
        make,
        loss="cross_entropy",
        compute=_ON_CPU,
        seed=0,
        recipe=PLAIN,
        kind="device",
        lacking=(),
        terms=None,
        **options,
    ):
        model, experts = make_experts(make)
        for k, expert in enumerate(experts):
            kept = {name: tensor for name, tensor in expert.items() if name not in lacking}
            write_checkpoint(tmp_path / f"{k}.safetensors", kept, {})
        checkpoints = [read_checkpoint(tmp_path / f"{k}.safetensors") for k in range(len(experts))]

        def on_device(step):
            return tuple(tensor.to(compute.device) for tensor in batch_of(step, loss))

        bank = load_bank(
            checkpoints, device=compute.device, channels_last=compute.channels_last, recipe=recipe, kind=kind
        )
        validation = [on_device(100), tuple(part[:5] for part in on_device(101))]
        objective = BlendObjective(
            ResidentBlends(compute.to_device(model), bank, compute, seed=seed, **options),
            Criterion(Goal("python:own:terms", best=0), loss, terms) if terms else of_loss(loss),
            Minibatches(on_device, lambda: validation, len(validation)),
            seed=seed,
        )
        return objective, model, experts

    return objective_of
