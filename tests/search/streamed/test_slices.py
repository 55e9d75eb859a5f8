"""The experts' tensors of a block in a buffer, whatever their files look like."""

import errno
import os

import pytest
import torch

from glue_cli.blend.recipe import PLAIN
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.errors import CheckpointError
from glue_cli.search.bank.matrix import Span
from glue_cli.search.bank.renamed_experts import rename_experts
from glue_cli.search.streamed.slices import NARROW_PAGE, PAGE, Slice, Wanted

SHAPES = {"a": (3, 5), "between": (40,), "b": (700, 3), "c": (1,), "image": (2, 3, 4, 5)}


@pytest.fixture
def checkpoint(tmp_path):
    draws = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=draws) for name, shape in SHAPES.items()}
    tensors["between"] = tensors["between"].double()
    write_checkpoint(tmp_path / "expert.safetensors", tensors, {"long": "x" * 37})
    return read_checkpoint(tmp_path / "expert.safetensors"), tensors


def wanted(names, *, channels_last=False):
    spans = {name: Span(0, SHAPES[name], channels_last and len(SHAPES[name]) == 4) for name in names}
    return {name: Wanted(torch.float32, span) for name, span in spans.items()}


@pytest.mark.parametrize("page", [PAGE, NARROW_PAGE])
@pytest.mark.parametrize("names", [list(SHAPES), ["a", "b"], ["c"], ["between"]])
@pytest.mark.parametrize("channels_last", [False, True])
def test_every_tensor_is_where_it_is_said_to_be(checkpoint, page, names, channels_last):
    expert, tensors = checkpoint
    tensors_wanted = wanted(names, channels_last=channels_last)
    part = Slice(rename_experts([expert], PLAIN, None), 0, tensors_wanted, start=2 * page, page=page)
    buffer = torch.full((part.stop + PAGE,), 255, dtype=torch.uint8)
    buffer = buffer[-buffer.data_ptr() % PAGE :][: part.stop]
    part.read(buffer)
    assert part.stop % page == 0 and (buffer[: 2 * page] == 255).all()
    for name, each in tensors_wanted.items():
        flat = part.view(buffer, name, torch.float32, tensors[name].numel())
        found = Span(0, each.span.shape, each.span.channels_last).view(flat)
        assert torch.equal(found, tensors[name].float())


def test_a_disk_that_cannot_be_read_past_the_cache_is_read_as_usual(checkpoint, monkeypatch):
    expert, tensors = checkpoint
    preadv, refused = os.preadv, []

    def refuse(descriptor, buffers, offset):
        if not refused:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return preadv(descriptor, buffers, offset)

    part = Slice(rename_experts([expert], PLAIN, None), 0, wanted(["b"]), start=0, page=PAGE)
    buffer = torch.empty(part.stop, dtype=torch.uint8)
    monkeypatch.setattr(os, "preadv", refuse)
    part.read(buffer)
    assert refused and torch.equal(part.view(buffer, "b", torch.float32, 2100).view(700, 3), tensors["b"])


def test_a_file_that_ends_too_early_is_refused(checkpoint):
    expert, _ = checkpoint
    part = Slice(rename_experts([expert], PLAIN, None), 0, wanted(["image"]), start=0, page=PAGE)
    os.truncate(expert.files[0], expert.files[0].stat().st_size - 8)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        part.read(torch.empty(part.stop, dtype=torch.uint8))
