import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from destinations import destination_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from glue_cli.blend import to_files as blend_module
from glue_cli.blend.compatibility import tensor_misfits
from glue_cli.blend.misfit import refuse
from glue_cli.blend.to_files import CHUNK, blend_files
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError
from glue_cli.foundation.progress import Advanced, Finished, Started

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# Relative to the largest terms: a few roundings of the sum, and the one into the output.
TOLERANCE = {torch.float64: 1e-15, torch.float32: 3e-7, torch.float16: 6e-4, torch.bfloat16: 4.5e-3}


def draw(seed, shapes=((40, 7), (5,), ()), dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    return {f"t{i}": torch.randn(shape, generator=random).to(dtype) for i, shape in enumerate(shapes)}


def weighted_sum(experts, alpha):
    return {
        name: sum((a * expert[name].double() for a, expert in zip(alpha, experts, strict=True)), torch.zeros(()))
        for name in experts[0]
    }


def assert_blend(found, experts, alpha):
    wanted = weighted_sum(experts, alpha)
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        scale = max([1e-30, *(expert[name].double().abs().max() for expert in experts if tensor.numel())])
        error = (tensor.double() - wanted[name]).abs() / scale
        assert tensor.shape == wanted[name].shape and (error <= TOLERANCE[tensor.dtype]).all()


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


# ---- the sum


@pytest.mark.parametrize("dtype", FLOATS)
def test_equals_an_independent_sum(save, blend, dtype):
    experts = [draw(k, dtype=dtype) for k in range(3)]
    found = blend([save(str(k), expert) for k, expert in enumerate(experts)], [0.5, 0.2, 0.3])
    assert all(tensor.dtype == dtype for tensor in found.values())
    assert_blend(found, experts, [0.5, 0.2, 0.3])


def test_a_system_without_fdatasync_flushes_otherwise():
    code = "import os; del os.fdatasync; from glue_cli.blend import to_files; assert to_files._flush is os.fsync"
    subprocess.run([sys.executable, "-c", code], check=True)  # macOS is such


def test_a_blend_is_flushed_as_it_goes_on(save, blend, monkeypatch):
    flushed = []
    monkeypatch.setattr(blend_module, "_flush", flushed.append)
    monkeypatch.setattr(blend_module, "FLUSH_BYTES", 1)
    blend([save(str(k), draw(k)) for k in range(2)], [0.5, 0.5])
    assert flushed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_mergekit(golden, blend, dtype):
    experts = [read_checkpoint(golden / f"expert-{k}.safetensors") for k in range(3)]
    found = blend(experts, [0.5, 0.3, 0.2], dtype="BF16" if dtype == "bfloat16" else None)
    wanted = load_file(golden / f"blend-{dtype}.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        # both sum in float32, maybe in another order; a last bit may then round to the other bfloat16
        rtol = 1e-6 if dtype == "float32" else 2**-7
        torch.testing.assert_close(tensor, wanted[name], rtol=rtol, atol=3e-7)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_equals_an_independent_sum_whatever_the_experts(data):
    n_experts = data.draw(st.integers(1, 4))
    shapes = data.draw(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=4))
    dtype = data.draw(st.sampled_from(FLOATS))
    weights = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=n_experts, max_size=n_experts))
    weights = weights if sum(weights) else [1.0] * n_experts
    alpha = [weight / sum(weights) for weight in weights]
    experts = [draw(k, shapes, dtype) for k in range(n_experts)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{k}.safetensors") for k in range(n_experts)]
        for path, expert in zip(paths, experts, strict=True):
            save_file(expert, path)
        output = Path(folder, "blend.safetensors")
        found = [read_checkpoint(path) for path in paths]
        destination, begun = destination_of(output, found), [StreamedHash(expert) for expert in found]
        hashes = blend_files(found, [alpha], destination, lambda hashes: {}, hashes=begun)
        assert hashes == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        assert_blend(load_file(output), experts, alpha)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [0, 1, 2])
def test_one_hot_alpha_returns_that_experts_bits(save, blend, dtype, k):
    random = torch.Generator().manual_seed(0)
    experts = []
    for _ in range(3):
        raw = torch.randint(0, 256, (dtype.itemsize * 40_001,), generator=random, dtype=torch.uint8).view(dtype)
        raw[~torch.isfinite(raw)] = 0  # any bits but NaN and infinity: subnormals, both zeros, the largest
        tiny = torch.finfo(dtype).smallest_normal / 4
        raw[:4] = torch.tensor([-0.0, tiny, -tiny, torch.finfo(dtype).max], dtype=torch.float64).to(dtype)
        experts.append({"raw": raw})
    alpha = [float(j == k) for j in range(3)]
    found = blend([save(str(j), expert) for j, expert in enumerate(experts)], alpha)
    assert torch.equal(bits(found["raw"]), bits(experts[k]["raw"]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_equal_experts_are_a_fixed_point(save, blend, dtype):
    expert = draw(0, dtype=dtype)
    found = blend([save(name, expert) for name in "abcde"], [0.1, 0.15, 0.2, 0.25, 0.3])
    assert_blend(found, [expert], [1.0])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_experts", [2, 3, 5, 6, 10, 49])
def test_what_all_experts_have_alike_keeps_its_bits_beside_what_differs(save, blend, dtype, n_experts):
    shared = {"b.index": torch.arange(999.0), "f": torch.ones(()), **draw(99, ((500, 7), (3,)))}
    shared = {name: tensor.to(dtype) for name, tensor in shared.items()}
    shared["d.mask"] = torch.full((9, 9), torch.finfo(dtype).min, dtype=dtype)
    drawn = [draw(k, ((11,), (401, 2), (7,)), dtype).values() for k in range(n_experts)]
    experts = [dict(zip("ace", tensors, strict=True)) for tensors in drawn]
    saved = [save(f"{k:02}", dict(sorted((shared | own).items()))) for k, own in enumerate(experts)]
    found = blend(saved, [1 / n_experts] * n_experts)
    assert all(torch.equal(bits(found.pop(name)), bits(tensor)) for name, tensor in shared.items())
    assert_blend(found, experts, [1 / n_experts] * n_experts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_alike_is_copied_into_other_dtypes_too(save, blend, dtype):
    shared = draw(9, dtype=dtype)
    saved = [save(str(k), shared) for k in range(3)]
    found = blend(saved, [0.3, 0.3, 0.4], dtype="F32")
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in shared.items())


def test_tensors_that_differ_at_their_end_alone_are_no_copies(save, blend):
    experts = [{"t": torch.cat([torch.ones(5000), torch.tensor([float(k)])])} for k in range(3)]
    saved = [save(str(k), expert) for k, expert in enumerate(experts)]
    for dtype in (None, "F16", "F64"):
        assert blend(saved, [0.5, 0.25, 0.25], **({"dtype": dtype} if dtype else {}))["t"][-1] == 0.75


def test_the_experts_order_matters_by_a_few_roundings_only(save, blend):
    experts = [save(str(k), draw(k)) for k in range(5)]
    alpha = [0.1, 0.15, 0.2, 0.25, 0.3]
    there, back = blend(experts, alpha), blend(experts[::-1], alpha[::-1])
    for name in there:
        torch.testing.assert_close(there[name], back[name], rtol=0, atol=5 * 2**-23)


def test_float64_is_summed_in_float64(save, blend):
    one, other = (torch.tensor([1.0 + delta], dtype=torch.float64) for delta in (1e-12, 3e-12))
    found = blend([save("a", {"w": one}), save("b", {"w": other})], [0.5, 0.5])
    assert abs(found["w"].item() - 1 - 2e-12) < 1e-15


def test_experts_of_several_dtypes_blend_into_the_one_asked_for(save, blend):
    experts = [draw(k, dtype=dtype) for k, dtype in enumerate(FLOATS)]
    checkpoints = [save(str(k), expert) for k, expert in enumerate(experts)]
    with pytest.raises(CheckpointError, match="differ in dtype"):
        refuse(tensor_misfits(checkpoints, dtype_given=False))
    refuse(tensor_misfits(checkpoints, dtype_given=True))
    for name, dtype in zip(["F64", "F32", "F16", "BF16"], FLOATS, strict=True):
        found = blend(checkpoints, [0.4, 0.3, 0.2, 0.1], dtype=name)
        assert all(tensor.dtype == dtype for tensor in found.values())
        assert_blend(found, experts, [0.4, 0.3, 0.2, 0.1])


# ---- layouts

SHAPES = ((3 * CHUNK + 17,), (211, 331), (5,), (CHUNK,), (), (0, 3), (2, CHUNK + 1))


def test_the_bytes_depend_on_neither_threads_nor_memory(save, blend, monkeypatch):
    experts = [save(str(k), draw(k, SHAPES)) for k in range(3)]
    alpha = [0.25, 0.6, 0.15]
    blend(experts, alpha, n_threads=1)
    wanted = blend.path.read_bytes()
    for slot_bytes in (1, 16 << 20):
        monkeypatch.setattr(blend_module, "SLOT_BYTES", slot_bytes)
        for n_threads in (1, 2, 4, 7):
            for memory_bytes in (1, 8 << 20, 192 << 20):
                blend(experts, alpha, n_threads=n_threads, memory_bytes=memory_bytes)
                assert blend.path.read_bytes() == wanted, (slot_bytes, n_threads, memory_bytes)
    torch.set_num_threads(2)
    blend(experts, alpha)
    assert blend.path.read_bytes() == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("small_blocks")
def test_the_bytes_do_not_depend_on_how_the_experts_lie_on_disk(save, save_in_order, save_shards, blend, dtype):
    shapes = ((CHUNK + 5,), (3, 3), (), (0, 3), (CHUNK - 1,))
    tensors = [draw(k, shapes, dtype) | {"ids": torch.arange(5), "mask": torch.tensor([True])} for k in range(2)]
    alpha = [0.3, 0.7]
    blend([save(f"plain{k}", tensors[k]) for k in range(2)], alpha)
    wanted = blend.path.read_bytes()
    mixed = {name: tensors[0][name] for name in ["mask", "t4", "t0", "ids", "t3", "t2", "t1"]}
    backwards = [dict(reversed(expert.items())) for expert in tensors]
    for pair in (
        [save_in_order("mixed", mixed), save("plain", tensors[1])],
        [save_in_order("back0", backwards[0]), save_in_order("back1", backwards[1])],
        [save_shards("shards0", tensors[0]), save_shards("shards1", backwards[1])],
        [save("folder/model", tensors[0]), save_shards("shards2", tensors[1])],
    ):
        blend(pair, alpha, n_threads=3)
        assert blend.path.read_bytes() == wanted
        for expert, digest in zip(pair, blend.hashes, strict=True):
            assert digest == hashlib.sha256(b"".join(file.read_bytes() for file in expert.files)).hexdigest()


def test_hugging_face_folders_are_read(save, save_shards, blend, tmp_path):
    experts = [draw(0), draw(1)]
    save("folder/model", experts[0])
    save_shards("shards", experts[1])
    index = tmp_path / "shards" / "model.safetensors.index.json"
    for second in (tmp_path / "shards", index):
        found = blend([read_checkpoint(tmp_path / "folder"), read_checkpoint(second)], [0.5, 0.5])
        assert_blend(found, experts, [0.5, 0.5])


def test_a_counter_between_two_tensors_keeps_its_place(save_in_order, blend):
    # the experts hold `a` and `c` next to each other; in the output the counter comes between them
    tensors = {"a": torch.arange(3), "c": torch.arange(3, 6), "b.num_batches_tracked": torch.tensor(9)}
    found = blend([save_in_order("a", tensors), save_in_order("b", tensors)], [0.5, 0.5])
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("alpha", [[0.3, 0.0, 0.7], [0.0, 1.0, 0.0]])
@pytest.mark.usefixtures("small_blocks")
def test_hashes_of_experts_that_take_no_part(save, save_shards, save_in_order, blend, alpha):
    tensors = [draw(k, ((3,), (), (70, 2))) | {"ids": torch.arange(3)} for k in range(3)]
    backwards = dict(reversed(tensors[2].items()))
    experts = [save("a", tensors[0]), save_shards("b", tensors[1]), save_in_order("c", backwards)]
    blend(experts, alpha, n_threads=2)
    for expert, digest in zip(experts, blend.hashes, strict=True):
        assert digest == hashlib.sha256(b"".join(file.read_bytes() for file in expert.files)).hexdigest()


def test_files_without_tensors(save, blend):
    assert blend([save("a", {}), save("b", {})], [0.5, 0.5]) == {}


@pytest.mark.parametrize(
    ("n_experts", "n_bytes", "memory_bytes"), [(4, 48 << 20, 8 << 20), (24, 8 << 20, 8 << 20), (24, 8 << 20, 30 << 20)]
)
def test_memory_stays_within_the_budget(tmp_path, n_experts, n_bytes, memory_bytes):
    try:
        Path("/proc/self/clear_refs").write_text("5")  # lets the peak begin anew
    except OSError:
        pytest.skip("the peak of the memory cannot be reset here")
    experts = []
    for k in range(n_experts):
        path = tmp_path / f"{k}.safetensors"
        save_file({"w": torch.zeros(1)}, path)
        header = path.read_bytes()[:-4].replace(b"[1]", b"[%d]" % (n_bytes // 4)).replace(b"0,4]", b"0,%d]" % n_bytes)
        length = len(header) - 8
        path.write_bytes(length.to_bytes(8, "little") + header[8:])
        os.truncate(path, len(header) + n_bytes)  # a sparse file of zeros
        experts.append(read_checkpoint(path))

    def bytes_of(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

    before = bytes_of("VmRSS")
    blend_files(
        experts,
        [[1 / n_experts] * n_experts],
        destination_of(tmp_path / "blend.safetensors", experts),
        lambda hashes: {},
        memory_bytes=memory_bytes,
        n_threads=12,
        hashes=[StreamedHash(expert) for expert in experts],
    )
    least = (n_experts + 1) * 4 * CHUNK  # what one thread needs
    assert bytes_of("VmHWM") - before < max(memory_bytes, least) + (24 << 20)  # the experts and the output are 200 MiB


# ---- what is not blended


def test_whole_numbers_and_truths_are_copied(save, blend):
    kept = {
        "ids": torch.arange(7).view(1, 7),
        "mask": torch.tensor([[True, False], [False, True]]),
        "small": torch.tensor([255, 0, 7], dtype=torch.uint8),
        "short": torch.tensor(-3, dtype=torch.int16),
        "none": torch.empty(0, dtype=torch.int32),
    }
    found = blend([save(str(k), kept | draw(k)) for k in range(2)], [0.5, 0.5], dtype="F16")
    for name, tensor in kept.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.mark.parametrize("alpha", [[0.5, 0.5], [1.0, 0.0]])
@pytest.mark.parametrize("name", ["a.ids", "b.mask", "c.ids"])
def test_a_copied_tensor_that_differs_is_named(save, blend, alpha, name):
    kept = {"a.ids": torch.arange(50_000), "b.mask": torch.ones(9, dtype=torch.bool), "c.ids": torch.arange(3)}
    other = {key: tensor.clone() for key, tensor in kept.items()}
    other[name][-1] = 0
    with pytest.raises(CheckpointError, match=f"'{name}'.*differs between .*one.safe.* and .*two.safe"):
        blend([save("one", kept), save("two", other)], alpha)


@pytest.mark.parametrize(("alpha", "wanted"), [([0.5, 0.5, 0.0], 7), ([0.0, 0.0, 1.0], 90), ([0.2, 0.2, 0.6], 90)])
def test_the_counter_of_batches_is_the_largest_of_those_that_take_part(save, blend, alpha, wanted):
    experts = [
        save(str(k), {"bn.num_batches_tracked": torch.tensor(count), "w": torch.zeros(2)})
        for k, count in enumerate([7, 3, 90])
    ]
    found = blend(experts, alpha)["bn.num_batches_tracked"]
    assert found.shape == () and found.dtype == torch.int64 and found.item() == wanted


# ---- faults


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(("name", "index"), [("t0", 0), ("t0", 2 * CHUNK + 5), ("t1", 11), ("t1", -1), ("t2", ...)])
def test_a_number_that_is_none_is_named(save, blend, wrong, dtype, name, index):
    experts = [draw(k, ((3 * CHUNK,), (100,), ()), dtype) for k in range(3)]
    experts[1][name][index] = wrong
    checkpoints = [save(f"expert{k}", expert) for k, expert in enumerate(experts)]
    with pytest.raises(CheckpointError, match=rf"expert1\.safetensors: '{name}' has {wrong}"):
        blend(checkpoints, [0.5, 0.3, 0.2], memory_bytes=1)
    blend(checkpoints, [0.5, 0.0, 0.5])  # it takes no part


def test_the_largest_numbers_are_no_fault(save, blend):
    largest = torch.full((1000,), torch.finfo(torch.float32).max)  # their sum overflows, they do not
    found = blend([save("a", {"w": largest}), save("b", {"w": largest})], [0.5, 0.5])
    assert torch.equal(found["w"], largest)


def test_too_large_for_float16(save, blend):
    experts = [save(str(k), {"a": torch.zeros(3), "b": torch.tensor([1.0, 70_000.0])}) for k in range(2)]
    with pytest.raises(CheckpointError, match="'b' is too large for F16"):
        blend(experts, [0.5, 0.5], dtype="F16")


@pytest.mark.parametrize("done_to_it", ["written", "longer", "shorter", "touched"])
def test_an_expert_that_changes_while_it_is_read(save, blend, tmp_path, done_to_it):
    expert = save("a", draw(0, SHAPES))
    path = expert.files[0]

    def meddle(event):
        if isinstance(event, Started):
            content = path.read_bytes()
            if done_to_it == "written":
                with open(path, "r+b") as file:
                    file.seek(-4, os.SEEK_END)
                    file.write(b"\0\0\0\0")
            elif done_to_it == "longer":
                path.write_bytes(content + b"more")
            elif done_to_it == "shorter":
                path.write_bytes(content[:-9])
            os.utime(path, ns=(0, 0))  # a clock may tick too slowly to show the writing

    with pytest.raises(CheckpointError, match=r"a\.safetensors.* (changed|became shorter) while it was read"):
        blend([expert, save("b", draw(1, SHAPES))], [0.5, 0.5], progress=meddle)
    assert not blend.path.exists()


def test_an_expert_that_changed_or_went_since_its_header_was_read(save, blend, tmp_path):
    experts = [save("a", draw(0)), save("b", draw(1))]
    save("a", draw(2, ((9, 9), (3,), (1,))))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        blend(experts, [0.5, 0.5])
    experts[0].files[0].unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        blend(experts, [0.5, 0.5])


@pytest.mark.parametrize("existing", [None, b"precious"])
@pytest.mark.usefixtures("small_blocks")
def test_a_failure_leaves_nothing_and_touches_nothing(save, blend, tmp_path, existing):
    bad = draw(1, SHAPES)
    bad["t6"][-1, -1] = float("nan")
    experts = [save("a", draw(0, SHAPES)), save("b", bad)]
    if existing:
        (tmp_path / "blend.safetensors").write_bytes(existing)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for n_threads in (1, 4):
        with pytest.raises(CheckpointError):
            blend(experts, [0.5, 0.5], n_threads=n_threads)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("small_blocks")
def test_a_stop_in_the_middle_leaves_nothing(save, blend, tmp_path):
    experts = [save("a", draw(0, SHAPES)), save("b", draw(1, SHAPES))]
    before = sorted(tmp_path.iterdir())

    def interrupt(event):
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blend(experts, [0.5, 0.5], progress=interrupt)
    assert sorted(tmp_path.iterdir()) == before


def test_progress_counts_every_byte_once(save, blend):
    events = []
    blend([save(str(k), draw(k, SHAPES)) for k in range(2)], [0.5, 0.5], memory_bytes=1, progress=events.append)
    started, *advanced, finished = events
    assert isinstance(started, Started) and finished == Finished()
    done = [event.done for event in advanced]
    n_elements = sum(tensor.numel() for tensor in draw(0, SHAPES).values())
    assert done == sorted(done) and done[-1] == started.total == 2 * 4 * n_elements


def test_metadata_is_told_the_hashes(save, tmp_path):
    experts = [save("a", draw(0)), save("b", draw(1))]
    hashes = blend_files(
        experts,
        [[0.5, 0.5]],
        destination_of(tmp_path / "out.safetensors", experts),
        lambda hashes: {"of": list(hashes)},
        hashes=[StreamedHash(expert) for expert in experts],
    )
    assert read_checkpoint(tmp_path / "out.safetensors").glue == {"of": hashes}
    assert hashes == [hashlib.sha256(expert.files[0].read_bytes()).hexdigest() for expert in experts]


def test_neither_depends_on_torchs_threads_nor_changes_them(save, blend):
    experts = [save(str(k), draw(k, ((5 * CHUNK + 3,),))) for k in range(3)]
    blends = []
    for n_torch_threads in (1, 2):
        torch.set_num_threads(n_torch_threads)
        blends.append(blend(experts, [0.5, 0.3, 0.2])["t0"])
        assert torch.get_num_threads() == n_torch_threads
    assert torch.equal(bits(blends[0]), bits(blends[1]))
