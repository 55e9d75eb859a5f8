"""Where a bank is kept."""

import pytest
import torch

from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.foundation.errors import CheckpointError, ResourceError, UsageError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.ranks import Place
from glue_cli.search import points
from glue_cli.search.bank import load as bank_load
from glue_cli.search.bank.load import choose_bank, load_bank

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
N = 100_000  # elements of an expert


@pytest.fixture
def experts(save):
    return [save(str(k), {"w": torch.full((N,), float(k)), "ids": torch.arange(50_000)}) for k in range(3)]


@pytest.fixture
def alone(monkeypatch):
    """Let no more blends be made together than a search has at once."""
    monkeypatch.setattr(points, "_PASS_BYTES", 0)


@pytest.fixture
def choose(monkeypatch, experts, alone):
    """Let a bank be chosen while so many bytes are free; keeps what was said."""

    def choose(
        wanted="auto", device=CPU, on_host=1e12, on_gpu=1e12, n_blends=2, experts=experts, recipe=PLAIN, **limits
    ):
        free = {"cpu": int(on_host), "cuda": int(on_gpu)}
        monkeypatch.setattr(bank_load, "free_memory", lambda device: free[device.type])
        said = []
        kind = choose_bank(wanted, experts, recipe, device=device, n_blends=n_blends, progress=said.append, **limits)
        (choose.noted,) = said
        assert isinstance(choose.noted, Noted) and not choose.noted.warning and "\n" not in choose.noted.text
        return kind

    return choose


BANK, BLENDS = 3 * 4 * N, 2 * 4 * N
PINNED = 1 << 21  # the next power of two


def test_the_cpu_keeps_the_bank_in_memory_where_it_fits_with_the_blends(choose):
    enough = (BANK + BLENDS) / 0.6
    assert choose(on_host=enough * 1.01) == "device"
    assert choose.noted.text == "bank: 3 experts, 1.2 MB, in memory; 3.4 MB are free"
    assert choose(on_host=enough * 0.99) == "streamed"
    assert choose.noted.text == "bank: 3 experts, 1.2 MB, streamed from disk block by block; 3.3 MB are free"
    assert choose(on_host=enough * 0.99, needs_gradient=True) == "disk"
    assert choose.noted.text == "bank: 3 experts, 1.2 MB, on disk; 3.3 MB are free"
    assert choose(on_host=enough * 0.99, n_blends=1) == "device"


def test_a_gpu_has_the_host_to_fall_back_on(choose):
    enough = (BANK + BLENDS) / 0.6
    assert choose(device=CUDA, on_gpu=enough * 1.01) == "device"
    assert choose.noted.text == "bank: 3 experts, 1.2 MB, on cuda:0; 3.4 MB are free"
    assert choose(device=CUDA, on_gpu=enough * 0.99) == "blocks"
    little = (BANK + BLENDS) / 0.75 * 0.99  # of a single tensor, a block's blends are whole ones
    assert choose(device=CUDA, on_gpu=little, on_host=PINNED / 0.6 * 1.01) == "host"
    assert choose.noted.text == "bank: 3 experts, 1.2 MB, in memory; 3.5 MB are free"
    assert choose(device=CUDA, on_gpu=BLENDS / 0.6 * 1.01) == "host"
    assert choose(device=CUDA, on_gpu=BLENDS / 0.6 * 0.99) == "streamed"  # the blends are on the GPU
    assert choose(device=CUDA, on_gpu=little, on_host=PINNED / 0.6 * 0.99) == "streamed"
    assert choose.noted.text.startswith("bank: 3 experts, 1.2 MB, streamed from disk")


def test_memory_that_was_given_is_kept(choose):
    assert choose(memory_bytes=BANK + BLENDS) == "device"
    assert choose(memory_bytes=BANK + BLENDS - 1) == "streamed"
    with pytest.raises(ResourceError, match="--bank device takes 2.0 MB, more than the 1.0 MB of --memory"):
        choose("device", memory_bytes=1_000_000)


def test_a_bank_on_disk_keeps_to_the_memory_too(choose, monkeypatch):
    monkeypatch.setattr(bank_load, "_DISK_BUFFER_BYTES", 4 * N)
    enough = 4 * N + BLENDS
    for wanted, limits in (("disk", {}), ("disk", {"needs_gradient": True}), ("auto", {"needs_gradient": True})):
        assert choose(wanted, memory_bytes=enough, **limits) == "disk"
        with pytest.raises(ResourceError, match=r"--bank disk takes 1.2 MB, more than the 1.2 MB of") as caught:
            choose(wanted, memory_bytes=enough - 1, **limits)
        assert caught.value.hint.startswith("--memory 2MiB and --bank disk" if limits else "--bank streamed")


def test_what_was_typed_is_named(choose):
    with pytest.raises(ResourceError, match="--bank host takes 2.0 MB"):
        choose("host", memory_bytes=1_000_000)


def test_blends_that_are_made_together_count(choose, monkeypatch):
    for pass_bytes, blends in ((1 << 26, 4 * 4 * N), (3 * 4 * N, 3 * 4 * N), (4 * N, 2 * 4 * N)):
        monkeypatch.setattr(points, "_PASS_BYTES", pass_bytes)
        assert choose(memory_bytes=BANK + blends) == "device"
        assert choose(memory_bytes=BANK + blends - 1) != "device"
    monkeypatch.setattr(points, "_PASS_BYTES", 1 << 26)
    assert choose(memory_bytes=BANK + 5 * 4 * N, recipe=Recipe(groups=("a", "b"))) != "device"  # 1 + 2 x 3


def test_streams_give_no_gradient(choose):
    with pytest.raises(UsageError, match="--method fullgrad needs the gradient of a whole blend"):
        choose("streamed", needs_gradient=True)


@pytest.fixture
def layered(save):
    """Experts whose largest tensor is a tenth of them."""
    return [save(f"layered-{k}", {f"{n}.w": torch.zeros(N // 10) for n in range(10)}) for k in range(3)]


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_experts_beside_which_no_whole_blend_fits_are_blended_block_by_block(choose, layered, device):
    enough = (BANK + BLENDS) / 0.6
    limits = {"device": device, "experts": layered, "on_gpu": enough * 0.99}
    limits["on_host"] = enough * 0.99 if device == CPU else 1e12
    assert choose(**limits) == "blocks"
    assert "blended block by block" in choose.noted.text
    assert choose(**limits, needs_gradient=True) == ("disk" if device == CPU else "host")
    assert choose(**limits, place=Place(0, 2)) == "sharded"
    assert choose(**limits, memory_bytes=BANK + BLENDS // 5) == "blocks"
    assert choose(**limits, memory_bytes=BANK) == "streamed"


def test_by_block_a_gpu_may_be_filled_further(choose, layered):
    """Four models of 7 billion parameters in bfloat16, 54 GB, are held by a GPU of 80."""
    limits = {"experts": layered, "on_gpu": (BANK + BLENDS // 10) / 0.74, "on_host": 1e12}
    assert choose(device=CUDA, **limits) == "blocks"
    assert choose(device=CUDA, **limits, needs_gradient=True) == "host"
    assert choose(**limits | {"on_host": (BANK + BLENDS // 10) / 0.74}) == "streamed"


def test_blocks_are_refused_where_they_cannot_be(choose):
    with pytest.raises(UsageError, match="--bank blocks is for one process"):
        choose("blocks", place=Place(0, 2))
    with pytest.raises(UsageError, match="--bank blocks has a block of it at a time"):
        choose("blocks", needs_gradient=True)


@pytest.mark.parametrize("wanted", ["device", "blocks", "host", "disk", "streamed"])
def test_what_is_wanted_is_done(choose, wanted):
    for free in (0, 1e12):
        assert choose(wanted, CUDA, on_host=free, on_gpu=free) == wanted
        assert choose(wanted, CPU, on_host=free) == ("device" if wanted == "host" else wanted)


def test_halves_that_all_experts_share_count_as_halves(choose, save):
    half, whole = torch.zeros(N, dtype=torch.bfloat16), torch.zeros(N)
    choose(experts=[save("a", {"w": half}), save("b", {"w": half})])
    assert "2 experts, 400.0 kB" in choose.noted.text
    choose(experts=[save("a", {"w": half}), save("b", {"w": whole})])
    assert "2 experts, 800.0 kB" in choose.noted.text


def test_only_what_is_blended_counts(choose, save):
    experts = [save(str(k), {"body": torch.zeros(N), "head": torch.zeros(N)}) for k in range(2)]
    choose(experts=experts, recipe=Recipe(copied_from={"head": 0}))
    assert "2 experts, 800.0 kB" in choose.noted.text


@pytest.mark.parametrize("kind", ["device", "disk"])
def test_a_negative_variance_is_said_before_the_search(save, kind):
    variance = torch.tensor([1.0, 0.0, 0.5])
    experts = [save(str(k), {"bn.running_var": variance, "bn.running_mean": -variance}) for k in range(2)]
    assert load_bank(experts, device=CPU, kind=kind).n_experts == 2
    broken = save("broken", {"bn.running_var": variance - 0.75, "bn.running_mean": -variance})
    with pytest.raises(CheckpointError, match="'bn.running_var' is a variance of BatchNorm, and has -0.75") as caught:
        load_bank([*experts, broken], device=CPU, kind=kind)
    assert str(broken.path) in caught.value.message
    apart = Recipe(copied_from={"bn.running_var": 0})  # nobody's but the first's
    assert load_bank([*experts, broken], device=CPU, kind=kind, recipe=apart).n_experts == 3
