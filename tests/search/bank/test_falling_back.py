"""A bank for which the memory runs out is loaded elsewhere; or the run ends with exit 5."""

import pytest
import torch
from safetensors.torch import load_file
from small_runs import make_small_world

from glue_cli.cli.app import main
from glue_cli.foundation.progress import Noted
from glue_cli.search.bank.falling_back import in_turn, load_first
from glue_cli.workflows.mix import whole_experts as experts_module

OUT_OF_MEMORY = [
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        " to allocate 8000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    torch.OutOfMemoryError("CUDA out of memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_the_next_kind_is_tried_and_that_is_said(error):
    tried, said = [], []

    def load(kind):
        tried.append(kind)
        if kind != "disk":
            raise error
        return "the bank"

    assert load_first(in_turn("device", needs_gradient=True), load, said.append) == "the bank" and tried == [
        "device",
        "host",
        "disk",
    ]
    assert said == [
        Noted("bank: out of memory in the device's memory; trying the host's memory", warning=True),
        Noted("bank: out of memory in the host's memory; trying disk", warning=True),
    ]


def test_without_a_gradient_the_last_is_to_stream():
    assert in_turn("device", needs_gradient=False) == ["device", "host", "streamed"]
    assert in_turn("streamed", needs_gradient=False) == ["streamed"] and in_turn("disk", needs_gradient=True) == [
        "disk"
    ]


def test_another_error_is_not_taken_for_that():
    def load(kind):
        raise ValueError(kind)

    with pytest.raises(ValueError, match="device"):
        load_first(["device", "disk"], load, pytest.fail)


@pytest.fixture
def world(tmp_path, monkeypatch):
    make_small_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    return ["mix", "--method", "spsa", "e0.safetensors", "e1.safetensors", "--force"]


def scarce(monkeypatch, kinds):
    """Let the memory run out for banks of some kinds."""
    load_bank = experts_module.load_bank

    def load(*experts, kind, **options):
        if kind in kinds:
            raise MemoryError
        return load_bank(*experts, kind=kind, **options)

    def stream(*arguments, **options):
        raise MemoryError

    if "streamed" in kinds:
        monkeypatch.setattr(experts_module, "Engine", stream)

    monkeypatch.setattr(experts_module, "load_bank", load)


def test_a_search_goes_on_by_streaming_to_the_same_blend(world, monkeypatch, capsys):
    assert main(world) == 0
    wanted = load_file("prior.safetensors")
    scarce(monkeypatch, {"device", "host"})
    assert main(world) == 0 and "out of memory in the device's memory" in capsys.readouterr().err
    found = load_file("prior.safetensors")
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "flags"), [({"device", "host", "streamed"}, []), ({"device"}, ["--bank", "device"])]
)
def test_without_memory_anywhere_or_where_it_was_asked_for(world, monkeypatch, capsys, tmp_path, kinds, flags):
    scarce(monkeypatch, kinds)
    assert main([*world, *flags]) == 5
    err = capsys.readouterr().err
    assert "error: out of memory" in err and "Traceback" not in err
    assert not (tmp_path / "prior.safetensors").exists()
