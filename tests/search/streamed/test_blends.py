"""Blends that go through the model block by block, beside those that are in memory as a whole."""

import os
import threading
from functools import partial

import pytest
import torch
from odd_nets import (
    SCALE,
    AsItsWeights,
    ByHand,
    Catching,
    Contextual,
    Counting,
    Deep,
    Keeping,
    Locked,
    Padded,
    Parallel,
    ParallelOrNot,
    Scratch,
    Stubborn,
    Wandering,
)
from small_nets import (
    ALPHA,
    ALPHA_OF_TWO,
    ALPHAS,
    ALPHAS_OF_TWO,
    BOTH,
    Attentive,
    Noisy,
    Recurrent,
    batch_of,
    conv_net,
    in_turn,
    make_experts,
    normed,
)
from stored_experts import stored_experts
from torch import nn

from glue_cli.blend.recipe import PLAIN
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.errors import CheckpointError, PrecisionError, ResourceError, UsageError
from glue_cli.foundation.ranks import Ranks
from glue_cli.running.device import Compute
from glue_cli.search import points
from glue_cli.search.bank.load import load_bank
from glue_cli.search.bank.renamed_experts import rename_experts
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.streamed import engine as engine_module
from glue_cli.search.streamed.blends import StreamedBlends
from glue_cli.search.streamed.block_model import BlockModel
from glue_cli.search.streamed.blocks import split_model
from glue_cli.search.streamed.engine import Engine
from glue_cli.search.streamed.reader import Slot

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")


MODELS = [
    Scratch,
    AsItsWeights,
    Padded,
    Counting,
    Contextual,
    conv_net,
    Recurrent,
    Attentive,
    normed,
    Noisy,
    Deep,
    ByHand,
    Catching,
    Keeping,
    Wandering,
]


@pytest.fixture(autouse=True)
def scaled():
    token = SCALE.set(0.5)
    yield
    SCALE.reset(token)


@pytest.fixture
def both(tmp_path):
    """Return resident and streamed blends of the same experts, in files."""

    def both(
        make, *, recipe=PLAIN, dtype=None, memory=1 << 30, channels_last=False, precision="fp32", device=CPU, **how
    ):
        model, checkpoints, bare = stored_experts(tmp_path, make, dtype)
        compute = Compute(device, precision, channels_last)
        bank = load_bank(checkpoints, device=device, channels_last=channels_last, recipe=recipe)
        bare = compute.to_device(bare)
        engine = Engine(
            bare,
            rename_experts(checkpoints, recipe, None),
            (),
            device,
            n_groups=len(recipe.groups),
            channels_last=channels_last,
            memory_bytes=memory,
            **how,
        )
        resident = ResidentBlends(compute.to_device(model), bank, compute, seed=0)
        return resident, StreamedBlends(bare, engine, compute, seed=0)

    return both


@pytest.fixture(params=["read", "held"])
def ways(both, request):
    """Return `both`, of experts that are read block by block and of those that are held in memory."""
    return partial(both, is_held=request.param == "held")


def same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b), (a - b).abs().max()


def all_outputs(blends, alphas=ALPHAS):
    yield from (outputs for outputs, _ in blends.outputs(alphas, BOTH, 1))
    yield from (outputs for outputs, _ in blends.outputs(alphas[:1], BOTH * 10, 2))
    coordinates = torch.arange(alphas[0].numel())
    yield from blends.towards(alphas[0], coordinates, 0.1, batch_of(1), 3)


@pytest.mark.parametrize("make", [*MODELS, Parallel, ParallelOrNot])
def test_the_bits_are_those_of_blends_in_memory(ways, make):
    resident, streamed = ways(make)
    for _ in range(2):
        same(all_outputs(streamed), all_outputs(resident))
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("make", [conv_net, Deep])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_bits_for_other_dtypes_and_precisions(ways, make, dtype, precision):
    resident, streamed = ways(make, dtype=dtype, precision=precision, channels_last=True)
    same(all_outputs(streamed), all_outputs(resident))


@pytest.mark.parametrize("make", MODELS)
def test_the_same_bits_in_bfloat16_by_rows_of_half_the_size(ways, make):
    resident, streamed = ways(make, precision="bf16")
    try:
        wanted = list(all_outputs(resident))
    except PrecisionError:  # an LSTM on a CPU without AVX-512
        with pytest.raises(PrecisionError):
            list(all_outputs(streamed))
    else:
        same(all_outputs(streamed), wanted)


def test_weights_of_linear_layers_are_rounded_when_they_are_blended(both):
    sizes = {}
    for precision in ("fp32", "bf16"):
        _, streamed = both(Deep, precision=precision)
        list(streamed.outputs(ALPHAS, BOTH, 1))
        sizes[precision] = len(streamed._engine._blender.rows._buffer)
    assert sizes["bf16"] == sizes["fp32"] / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [conv_net, Deep])
def test_the_same_bits_past_the_page_cache(ways, monkeypatch, make, dtype):
    monkeypatch.setattr(engine_module, "free_memory", lambda device: 0)
    resident, streamed = ways(make, dtype=dtype)
    assert streamed._engine._is_past_cache
    same(all_outputs(streamed), all_outputs(resident))


@pytest.mark.cuda
@pytest.mark.parametrize("make", [conv_net, Recurrent, Attentive, Noisy, Deep, ByHand, Keeping])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("past_cache", [False, True])
def test_a_gpu_gets_its_blocks_through_pinned_memory(both, cuda, monkeypatch, make, precision, past_cache):
    if past_cache:
        monkeypatch.setattr(engine_module, "free_memory", lambda device: 0)
    resident, streamed = both(make, precision=precision, device=cuda)
    batches = [tuple(part.to(cuda) for part in batch) for batch in BOTH]
    far = 1e-5 if precision == "fp32" else 3e-2
    for step in range(4):  # both slots are filled again and again while the GPU is behind
        for run in (
            lambda blends, step=step: (outputs for outputs, _ in blends.outputs(ALPHAS, batches, step)),
            lambda blends, step=step: blends.towards(ALPHA, torch.arange(3), 0.1, batches[0], step),
        ):
            for one, other in zip(run(streamed), run(resident), strict=True):
                assert one.device == cuda
                torch.testing.assert_close(one, other, rtol=far, atol=far)
    slots = streamed._engine._blender.reader._slots
    assert len(slots) == 2
    for slot in slots:
        assert slot._host.is_pinned() and slot.buffer.device == cuda and slot._stream is not None


@pytest.mark.parametrize("columns", [0, 1 << 26])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_bits_for_large_models(ways, monkeypatch, columns, precision):
    monkeypatch.setattr(points, "_PASS_BYTES", 0)
    monkeypatch.setattr(points, "_LARGE_COLUMNS", columns)
    resident, streamed = ways(Deep, precision=precision)
    same(all_outputs(streamed), all_outputs(resident))


def test_the_same_bits_for_groups(ways):
    resident, streamed = ways(Attentive, recipe=in_turn(Attentive, 2))
    same(all_outputs(streamed, ALPHAS_OF_TWO), all_outputs(resident, ALPHAS_OF_TWO))
    same(*(b.towards(ALPHA_OF_TWO, torch.arange(3), 0.1, BOTH[0], 1, is_tied=True) for b in (streamed, resident)))


def test_the_same_bits_with_statistics_of_the_batch(ways):
    resident, streamed = (blends.with_statistics("refreshed") for blends in ways(conv_net))
    same(all_outputs(streamed), all_outputs(resident))


@pytest.mark.parametrize("make", [conv_net, Deep, Attentive])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_blend_as_its_file_will_be(ways, make, dtype):
    resident, streamed = ways(make)
    names = dict.fromkeys(make().state_dict(), dtype)
    blends = [provider.as_written(names) for provider in (resident, streamed)]
    for alpha in ALPHAS:
        for blend in blends:
            blend.load(alpha)
        same(*([outputs for outputs, _ in blend.outputs(BOTH)] for blend in blends))
        for blend in blends:
            blend.refresh(BOTH, Ranks())
        same(*([outputs for outputs, _ in blend.outputs(BOTH)] for blend in blends))
        found, wanted = (blend.statistics() for blend in reversed(blends))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_model_is_split_as_far_as_its_forward_allows(both):
    blocks = {}
    for make in (Deep, ByHand):
        _, streamed = both(make)
        list(all_outputs(streamed))
        blocks[make] = len(streamed._engine._layouts)
    assert blocks == {Deep: 1 + 1 + 4 + 2, ByHand: 1 + 4}


def test_each_step_reads_the_experts_once(both, monkeypatch):
    read, fill = [], Slot.fill
    monkeypatch.setattr(Slot, "fill", lambda slot, layout, pool: (read.append(layout), fill(slot, layout, pool)))
    _, streamed = both(Deep)
    engine = streamed._engine
    list(streamed.towards(ALPHA, torch.arange(3), 0.1, batch_of(1), 1))
    n_before = len(read)
    for step in range(3):
        list(streamed.towards(ALPHA, torch.arange(3), 0.1, batch_of(step), step))
    of_a_pass = [layout.block.module for layout in engine._layouts.values()]
    assert sorted(layout.block.module for layout in read[n_before:]) == sorted(3 * [*of_a_pass, "layers.1"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("pass_bytes", "spare"), [(1 << 26, 3000), (1 << 26, 2000), (0, 2000)])
def test_a_limit_that_one_block_fits_is_kept_with_the_same_bits(both, monkeypatch, pass_bytes, spare, precision):
    monkeypatch.setattr(points, "_PASS_BYTES", pass_bytes)
    resident, streamed = both(Deep, memory=3 * 544 * 4 + 544 * 4 + spare, precision=precision)
    engine = streamed._engine
    assert engine._left // (544 * 4) == 1 + spare // 3000
    for one, other in zip(all_outputs(streamed), all_outputs(resident), strict=True):
        assert torch.equal(one, other)
        buffers = [*(slot.buffer for slot in engine._blender.reader._slots), engine._blender.rows._buffer]
        assert sum(map(len, buffers)) <= engine._memory_bytes


def test_a_block_that_does_not_fit_is_refused_with_what_would(both):
    with pytest.raises(ResourceError, match="do not fit into") as refused:
        both(Deep, memory=5000)
    assert refused.value.hint == "--memory 1MiB at least, or 1MiB to read ahead"


@pytest.mark.parametrize("pass_bytes", [0, 1 << 26])
def test_tensors_outside_blocks_are_within_the_limit(ways, monkeypatch, pass_bytes):
    monkeypatch.setattr(points, "_PASS_BYTES", pass_bytes)
    taken, keep = [], Engine._keep

    def weigh(self, *arguments):
        kept = keep(self, *arguments)
        n_bytes = sum(tensor.numel() * 4 for tensors in kept.values() for tensor in tensors.values())
        rows = len(self._blender.rows._buffer)
        taken.append((len(kept), self._memory_bytes - self._left + rows + n_bytes <= self._memory_bytes))
        return kept

    monkeypatch.setattr(Engine, "_keep", weigh)
    resident, ample = ways(ByHand)
    wanted = list(all_outputs(resident))
    same(all_outputs(ample), wanted)
    engine = ample._engine
    layouts = engine._layouts
    of_experts = [layout.n_bytes for layout in layouts.values()]
    n_rows, row = 4 if pass_bytes else 2, max(layout.row_bytes(narrow=False) for layout in layouts.values())
    for n_kept in (1, 2):
        room = n_rows * row + n_kept * layouts[""].row_bytes(narrow=False)
        _, tight = ways(ByHand, memory=(sum(of_experts) if engine.is_held else 2 * max(of_experts)) + room)
        list(tight.outputs(ALPHAS[:1], BOTH, 1))  # finds that it needs tensors outside blocks
        taken.clear()
        same(all_outputs(tight), wanted)
        assert n_kept <= max(n for n, _ in taken) < 4 and all(fits for _, fits in taken)


def test_a_forward_that_needs_more_than_a_block_is_refused_with_the_reason(both):
    _, streamed = both(Catching, memory=9000)
    with pytest.raises(
        ResourceError, match="tensors of the experts that are in no block take .* do not fit"
    ) as refused:
        list(all_outputs(streamed))
    assert "('T' needs a tensor outside the block that it belongs to)" in refused.value.message


def test_no_gradient(both):
    _, streamed = both(Deep)
    with pytest.raises(UsageError, match="this bank has a block"):
        streamed.gradient(ALPHA, batch_of(1), 1, lambda outputs, targets: outputs.sum())


@pytest.mark.parametrize("what", ["gone", "changed", "nan"])
def test_an_expert_that_is_not_what_it_was_is_refused(both, tmp_path, what):
    _, streamed = both(Deep)
    path = tmp_path / "1.safetensors"
    if what != "nan":
        list(all_outputs(streamed))
    if what == "gone":
        path.unlink()
    else:
        tensors = {name: tensor * float("nan") for name, tensor in make_experts(Deep)[1][1].items()}
        stamp = path.stat()
        write_checkpoint(path, tensors, {})
        if what == "nan":
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(CheckpointError):
        list(all_outputs(streamed))


def test_outputs_that_nobody_takes_leave_no_thread(ways):
    _, streamed = ways(Deep)
    outputs = streamed.outputs(ALPHAS, BOTH, 1)
    next(outputs)
    assert [thread for thread in threading.enumerate() if thread.name == "forward"]
    outputs.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "forward"]
    same(all_outputs(streamed), all_outputs(streamed))


@pytest.mark.timeout(60)
def test_forwards_that_wait_for_each_other_are_not_split(both, monkeypatch):
    monkeypatch.setattr("glue_cli.search.streamed.lanes._STALLED_S", 0.2)
    resident, streamed = both(Locked)
    same(all_outputs(streamed), all_outputs(resident))
    assert len(streamed._engine._layouts) == 1


@pytest.mark.timeout(60)
def test_a_model_that_catches_everything_ends_where_it_fails(both):
    _, streamed = both(Stubborn)
    with pytest.raises((ValueError, ArithmeticError)):
        list(all_outputs(streamed))
    assert not [thread for thread in threading.enumerate() if thread.name == "forward"]


def test_tied_weights_are_one_parameter_whether_they_are_there_or_not():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    split = split_model(model, ["0.weight"], "modules")
    copied = BlockModel(model, (), split, CPU)
    assert copied.module[0].weight is copied.module[1].weight is not model[0].weight
    for block in (*split.blocks, split.kept):
        copied.bind(block, {"0.weight": torch.ones(5, 4)})
    whole = split_model(model, ["0.weight"], "none")
    copied = BlockModel(model, (), whole, CPU)
    copied.bind(whole.kept, {"0.weight": torch.ones(5, 4)})
    assert copied.module[0].weight is copied.module[1].weight and copied.module[1].weight.sum() == 20


def test_rows_are_used_again_by_the_next_block(both):
    _, streamed = both(Deep)
    list(all_outputs(streamed))
    rows = streamed._engine._blender.rows
    before = rows._buffer.data_ptr()
    for step in range(3):
        list(streamed.towards(ALPHA, torch.arange(3), 0.1, batch_of(step), step))
        assert rows._buffer.data_ptr() == before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_experts_that_are_held_are_read_once_and_need_no_file_then(both, tmp_path, precision):
    resident, held = both(Deep, precision=precision, is_held=True)
    held._engine.open()
    for path in tmp_path.iterdir():
        path.unlink()
    for _ in range(2):
        same(all_outputs(held), all_outputs(resident))
    assert held.is_resident and held.waited_s == 0


@pytest.mark.parametrize(("precision", "n_rows"), [("fp32", 2), ("bf16", 1)])
def test_of_a_large_model_whose_experts_are_held_few_blends_are_in_memory(both, monkeypatch, precision, n_rows):
    monkeypatch.setattr(points, "_PASS_BYTES", 0)
    monkeypatch.setattr(points, "_LARGE_COLUMNS", 0)
    monkeypatch.setattr(engine_module, "_SHARE_OF_HELD", 0)
    resident, held = both(Deep, precision=precision, is_held=True)
    same(all_outputs(held), all_outputs(resident))
    row = max(layout.row_bytes(narrow=precision == "bf16") for layout in held._engine._layouts.values())
    assert len(held._engine._blender.rows._buffer) == n_rows * row


def test_nan_in_an_expert_that_is_held_is_refused_at_its_first_use(both):
    _, held = both(Deep, is_held=True)
    held._engine.open()
    layout = held._engine._layouts["layers.2"]
    buffer = held._engine._blender.reader.get(layout)
    layout.slices[1].view(buffer, "layers.2.0.weight", torch.float32, 256)[99] = float("nan")
    with pytest.raises(CheckpointError, match="layers.2.0.weight"):
        list(all_outputs(held))


def test_experts_that_cannot_be_held_are_refused(both):
    with pytest.raises(ResourceError, match="the experts take .* do not fit into 9.0 kB") as refused:
        both(Deep, memory=9000, is_held=True)
    assert refused.value.hint == "--bank streamed"
