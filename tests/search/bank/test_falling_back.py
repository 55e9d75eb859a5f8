"""A bank for which the memory runs out is loaded elsewhere; or the run ends with exit 5."""

from threading import BrokenBarrierError

import pytest
import torch
from in_threads import by_several
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


@pytest.mark.parametrize("exchanges", [0, 1, 3])
def test_all_processes_fall_back_together(exchanges):
    """The memory runs out for one of them, while the others wait for it, or have loaded theirs."""

    def work(ranks):
        def load(kind):
            for _ in range(exchanges):
                ranks.gather([torch.ones(2)])
            if (kind, ranks.place.rank) in (("device", 1), ("sharded", 0), ("sharded", 2)):
                raise MemoryError
            assert all(found.tolist() == [1, 1] for found in ranks.gather([torch.ones(2)]))
            return kind

        said = []
        kinds = in_turn("device", needs_gradient=False, n_processes=3)
        return load_first(kinds, load, said.append, ranks), len(said)

    assert by_several(3, work) == [("host", 2)] * 3


def test_of_several_processes_another_error_ends_the_one_that_has_it():
    def work(ranks):
        def load(kind):
            if ranks.is_first:
                raise ValueError(kind)
            ranks.gather([])

        with pytest.raises((ValueError, BrokenBarrierError)) as caught:
            load_first(["device", "streamed"], load, pytest.fail, ranks)
        if ranks.is_first:
            assert caught.type is ValueError
            raise caught.value

    with pytest.raises(ValueError, match="device"):
        by_several(2, work)


def test_without_a_gradient_the_last_is_to_stream():
    assert in_turn("device", needs_gradient=False) == ["device", "blocks", "host", "streamed"]
    assert in_turn("device", needs_gradient=False, n_processes=2) == ["device", "sharded", "host", "streamed"]
    assert in_turn("device", needs_gradient=True, n_processes=2) == ["device", "host", "disk"]
    assert in_turn("blocks", needs_gradient=False) == ["blocks", "host", "streamed"]
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
