"""A bank that stays in the experts' files."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend.recipe import Recipe
from glue_cli.foundation.errors import CheckpointError
from glue_cli.search.bank import load as bank_load
from glue_cli.search.bank import matrix as bank
from glue_cli.search.bank.load import load_bank

CPU = torch.device("cpu")
SHAPES = {"conv": (6, 5, 3, 3), "bias": (6,), "scale": (), "wide": (33, 41), "odd": (7, 1, 5), "last": (700,)}
GROUPS = Recipe(("a", "b"), {"conv": 1, "wide": 1, "odd": 1})
ALPHAS = torch.tensor([[[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], [[1, 0, 0], [0.1, 0.1, 0.8]]], dtype=torch.float64)


def draw(seed, dtypes=(torch.float32,)):
    random = torch.Generator().manual_seed(seed)
    shapes = enumerate(SHAPES.items())
    return {name: torch.randn(shape, generator=random).to(dtypes[i % len(dtypes)]) for i, (name, shape) in shapes}


@pytest.fixture
def block_columns(monkeypatch):
    """Set how many columns of three experts are read at once."""

    def block_columns(n):
        monkeypatch.setattr(bank_load, "_DISK_BUFFER_BYTES", n * 4 * (3 + 1) * torch.get_num_threads())

    return block_columns


def assert_right(on_disk, experts):
    """Compare blends, one that is moved, and inner products with sums in float64."""
    blends = torch.full((len(ALPHAS), on_disk.n_columns), float("nan"))
    on_disk.blend(ALPHAS, blends)
    moved = torch.full((on_disk.n_columns,), float("nan"))
    on_disk.each_tile(lambda tile: tile.move(blends[0], 1, 2, 0.3, moved))
    assert on_disk.spans.keys() == SHAPES.keys()
    gradient = torch.randn(on_disk.n_columns, generator=torch.Generator().manual_seed(99))
    wanted = torch.zeros(2, 3, dtype=torch.float64)
    for name, span in on_disk.spans.items():
        group = GROUPS.group_of.get(name, 0)
        for row, alphas in zip(blends, ALPHAS, strict=True):
            blend = sum(a * expert[name].double() for a, expert in zip(alphas[group], experts, strict=True))
            torch.testing.assert_close(span.view(row).double(), blend, rtol=0, atol=2e-6)
        here = span.view(blends[0]).double()
        wanted_move = here + 0.3 * group * (experts[2][name].double() - here)
        torch.testing.assert_close(span.view(moved).double(), wanted_move, rtol=0, atol=2e-6)
        for k, expert in enumerate(experts):
            difference = expert[name].double() - span.view(blends[0]).double()
            wanted[group, k] += (difference * span.view(gradient).double()).sum()
    torch.testing.assert_close(on_disk.inner_products(gradient, blends[0]), wanted, rtol=0, atol=5e-5)


DTYPES = {
    "float32": [(torch.float32,)] * 3,
    "bfloat16": [(torch.bfloat16,)] * 3,
    "several": [(torch.float32, torch.float16, torch.bfloat16, torch.float64)] * 3,
    "other ones by expert": [(torch.float32,), (torch.bfloat16, torch.float16), (torch.float64,)],
}


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("n", [7, 64, 100_000])  # tensors are cut, or all are in one block
def test_equals_sums_in_float64(save, dtypes, block_columns, n):
    block_columns(n)
    experts = [draw(k, dtypes[k]) for k in range(3)]
    checkpoints = [save(str(k), expert) for k, expert in enumerate(experts)]
    assert_right(load_bank(checkpoints, device=CPU, recipe=GROUPS, kind="disk"), experts)


@pytest.mark.parametrize("n", [7, 64, 100_000])
def test_orders_and_shards_may_differ(save, save_in_order, save_shards, block_columns, n):
    block_columns(n)
    experts = [draw(k) for k in range(3)]
    backwards = dict(reversed(experts[1].items()))
    checkpoints = [save_shards("a", experts[0]), save_in_order("b", backwards), save("c", experts[2])]
    for order in ((0, 1, 2), (1, 2, 0)):  # the first expert's order is that of the columns
        some = [checkpoints[k] for k in order]
        assert_right(load_bank(some, device=CPU, recipe=GROUPS, kind="disk"), [experts[k] for k in order])


def test_equals_the_bank_in_memory(save, block_columns):
    block_columns(64)
    checkpoints = [save(str(k), draw(k)) for k in range(3)]
    banks = [load_bank(checkpoints, device=CPU, channels_last=True, recipe=GROUPS, kind=k) for k in ("device", "disk")]
    gradients = draw(99)
    views, products = [], []
    for one in banks:
        blends, gradient = torch.zeros(2, one.n_columns), torch.zeros(one.n_columns)
        one.blend(ALPHAS, blends)
        for name, span in one.spans.items():
            span.view(gradient).copy_(gradients[name])
        views.append({name: span.view(blends[0]) for name, span in one.spans.items()})
        products.append(one.inner_products(gradient, blends[0]))
    for name in SHAPES:
        torch.testing.assert_close(views[1][name], views[0][name], rtol=0, atol=1e-6)
    torch.testing.assert_close(products[1], products[0], rtol=0, atol=5e-5)


def test_several_threads_read_the_same(save, block_columns, monkeypatch):
    experts = [draw(k, (torch.float32, torch.bfloat16)) for k in range(3)]
    checkpoints = [save(str(k), expert) for k, expert in enumerate(experts)]
    monkeypatch.setattr(bank, "_SHARED_COLUMNS", 0)
    torch.set_num_threads(4)
    block_columns(16)
    assert_right(load_bank(checkpoints, device=CPU, recipe=GROUPS, kind="disk"), experts)


# ---- faults


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("n", [7, 100_000])
def test_a_number_that_is_none_is_named_before_the_search(save, wrong, dtype, block_columns, n):
    block_columns(n)
    bad = draw(1, (dtype,))
    bad["wide"][20, 20] = wrong
    with pytest.raises(CheckpointError, match=rf"b\.safetensors: 'wide' has {wrong}"):
        load_bank([save("a", draw(0, (dtype,))), save("b", bad)], device=CPU, recipe=GROUPS, kind="disk")


def test_large_numbers_are_no_fault(save):
    largest = torch.full((9,), torch.finfo(torch.float32).max)  # their sum overflows
    on_disk = load_bank([save("a", {"w": largest})], device=CPU, kind="disk")
    out = torch.zeros(1, 9)
    on_disk.blend(torch.ones(1, 1, 1), out)
    assert torch.equal(out[0], largest)


@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_file_that_changes_is_noticed(save, tmp_path, moment):
    checkpoints = [save(str(k), draw(k)) for k in range(3)]
    change = {name: tensor + 1 for name, tensor in draw(1).items()}
    if moment == "before":
        save_file(change | {"more": torch.zeros(1)}, tmp_path / "1.safetensors")
        with pytest.raises(CheckpointError, match=r"1\.safetensors' changed while it was read"):
            load_bank(checkpoints, device=CPU, kind="disk")
        return
    on_disk = load_bank(checkpoints, device=CPU, kind="disk")
    out = torch.zeros(1, on_disk.n_columns)
    on_disk.blend(ALPHAS[:1, :1], out)
    save_file(change, tmp_path / "1.safetensors")
    os.utime(tmp_path / "1.safetensors", (1, 1))  # of the same size, and maybe within one tick of the clock
    with pytest.raises(CheckpointError, match=r"1\.safetensors' changed while it was read"):
        on_disk.blend(ALPHAS[:1, :1], out)
    with pytest.raises(CheckpointError, match=r"1\.safetensors' changed while it was read"):
        on_disk.inner_products(out[0], out[0])
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1\.safetensors' cannot be read: No such file"):
        on_disk.blend(ALPHAS[:1, :1], out)


# ---- memory

N_EXPERTS, N = 20, 1_000_000  # two such tensors an expert: 160 MB
LIMIT = 110 << 20  # what may be taken beyond what torch has taken by then

SEARCH = """
    import json, resource, sys
    from pathlib import Path
    import torch
    from torch import nn
    from glue_cli.search.bank import load as bank_load
    from glue_cli.search.bank.load import load_bank
    from glue_cli.checkpoints.read import read_checkpoint
    from glue_cli.running.device import Compute
    from glue_cli.search.blended import ResidentBlends
    from glue_cli.search.criterion import criterion_of
    from glue_cli.search.objective import BlendObjective, Minibatches
    from glue_cli.blend.recipe import Recipe

    n, limit, cpu = int(sys.argv[1]), int(sys.argv[2]), torch.device("cpu")
    torch.set_num_threads(1)
    bank_load._DISK_BUFFER_BYTES = 16 << 20  # as small in proportion as the experts are

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.zeros(n))

        def forward(self, inputs):
            return inputs @ torch.stack([self.one[:100].sum(), self.two[-100:].sum()])

    (nn.Linear(2, 2)(torch.ones(1, 2)).sum() * torch.ones(1, requires_grad=True)).backward()  # all that torch starts
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit += 1024 * int(status["VmData"].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    experts = [read_checkpoint(Path(path)) for path in sys.argv[3:]]
    recipe = Recipe(("one", "two"), {"two": 1})
    try:
        load_bank(experts, device=cpu, recipe=recipe)
    except RuntimeError as error:
        refused = str(error)
    batch = torch.tensor([[1.0, 2.0], [-1.0, 1.0]]), torch.tensor([0.0, 0.0])
    bank = load_bank(experts, device=cpu, recipe=recipe, kind="disk")
    objective = BlendObjective(
        ResidentBlends(Net(), bank, Compute(cpu), seed=0), criterion_of("loss", "mse", Path(".")),
        Minibatches(lambda step: batch, lambda: [batch], 1), seed=0,
    )
    alphas = torch.softmax(torch.arange(4.0 * len(experts), dtype=torch.float64).view(2, 2, -1) / 50, -1)
    print(json.dumps({
        "refused": refused,
        "alphas": alphas.tolist(),
        "losses": objective.probe_losses(alphas, 0).tolist(),
        "gradient": objective.gradient(alphas[0], 0)[1].tolist(),
    }))
"""


def save_sparse(path, k):
    """Write an expert of zeros but for the first element of `one`, k + 1, and the last of `two`, k / 2."""
    tensors = {name: {"dtype": "F32", "shape": [N], "data_offsets": [4 * N * i, 4 * N * (i + 1)]} for i, name in SIDES}
    header = json.dumps(tensors).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(torch.tensor([k + 1.0]).numpy().tobytes())
        file.seek(8 + len(header) + 8 * N - 4)
        file.write(torch.tensor([k / 2]).numpy().tobytes())


SIDES = ((0, "one"), (1, "two"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory as Linux does")
def test_experts_larger_than_the_memory_can_be_searched(tmp_path):
    paths = [tmp_path / f"{k}.safetensors" for k in range(N_EXPERTS)]
    for k, path in enumerate(paths):
        save_sparse(path, k)
    assert sum(path.stat().st_size for path in paths) > 1.3 * LIMIT
    command = [sys.executable, "-c", textwrap.dedent(SEARCH), str(N), str(LIMIT), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "alloc" in found["refused"]  # in memory, the bank does not fit
    alphas = torch.tensor(found["alphas"], dtype=torch.float64)
    experts = torch.arange(N_EXPERTS, dtype=torch.float64)
    one, two = alphas[:, 0] @ (experts + 1), alphas[:, 1] @ (experts / 2)
    first, second = one + 2 * two, two - one
    assert found["losses"] == pytest.approx(((first**2 + second**2) / 2).tolist(), rel=1e-5)
    slopes = torch.stack(
        [(first - second)[0] * (experts + 1 - one[0]), (2 * first + second)[0] * (experts / 2 - two[0])]
    )
    torch.testing.assert_close(torch.tensor(found["gradient"], dtype=torch.float64), slopes, rtol=1e-5, atol=1e-3)
