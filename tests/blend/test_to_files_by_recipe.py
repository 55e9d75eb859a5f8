"""Blends by a recipe: groups of tensors, tensors copied from one expert, tensors made elsewhere."""

import hashlib

import pytest
import torch
from destinations import destination_of
from safetensors.torch import load_file

from glue_cli.blend.compatibility import tensor_misfits
from glue_cli.blend.misfit import refuse
from glue_cli.blend.recipe import Recipe
from glue_cli.blend.to_files import blend_files
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError, NumericalError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-15, torch.float32: 3e-7, torch.float16: 6e-4, torch.bfloat16: 4.5e-3}
ALPHAS = [[0.2, 0.5, 0.3], [0.7, 0.0, 0.3], [0.0, 1.0, 0.0]]
SHAPES = {"a": (7, 9), "b": (11,), "c": (13,), "d": (4, 4), "e": (140_000,), "f": ()}
GROUPS = Recipe(("first", "second", "third"), {"b": 1, "c": 1, "d": 2, "e": 1})


def draw(seed, dtype=torch.float32, **more):
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random).to(dtype) for name, shape in SHAPES.items()} | more


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@pytest.fixture
def blend(tmp_path):
    """Blend experts by a recipe; check the hashes, and return the blend's tensors as safetensors reads them."""

    def blend(experts, recipe, alphas=ALPHAS, dtype=None, name="blend", max_shard_bytes=None, **options):
        refuse(tensor_misfits(experts, dtype_given=dtype is not None, apart=recipe.apart))
        path = tmp_path / f"{name}.safetensors"
        destination = destination_of(path, experts, recipe=recipe, dtype=dtype, max_shard_bytes=max_shard_bytes)
        begun = [StreamedHash(expert) for expert in experts]
        hashes = blend_files(experts, alphas, destination, lambda hashes: {}, recipe=recipe, hashes=begun, **options)
        assert hashes == [hashlib.sha256(b"".join(f.read_bytes() for f in e.files)).hexdigest() for e in experts]
        return {key: tensor for file in destination.files for key, tensor in load_file(file).items()}

    return blend


def assert_blended(found, experts, recipe, alphas=ALPHAS):
    for name in SHAPES:
        if recipe.is_blended(name):
            alpha = alphas[recipe.group_of.get(name, 0)]
            terms = [a * expert[name].double() for a, expert in zip(alpha, experts, strict=True)]
            scale = max(expert[name].double().abs().max() for expert in experts)
            assert found[name].shape == SHAPES[name]
            assert ((found[name].double() - sum(terms)).abs() / scale).max() <= TOLERANCE[found[name].dtype]


# ---- groups


@pytest.mark.parametrize("dtype", FLOATS)
def test_each_tensor_gets_its_groups_coefficients(save, blend, dtype):
    experts = [draw(k, dtype) for k in range(3)]
    found = blend([save(str(k), expert) for k, expert in enumerate(experts)], GROUPS)
    assert found.keys() == SHAPES.keys() and all(tensor.dtype == dtype for tensor in found.values())
    assert_blended(found, experts, GROUPS)
    assert torch.equal(bits(found["d"]), bits(experts[1]["d"]))  # a one-hot alpha copies


def test_experts_may_order_and_shard_their_tensors_otherwise(save, save_in_order, save_shards, blend):
    experts = [draw(k) for k in range(3)]
    backwards = dict(reversed(experts[1].items()))
    checkpoints = [save_shards("s", experts[0]), save_in_order("b", backwards), save("c", experts[2])]
    for name, options in {"one": {}, "shards": {"max_shard_bytes": 400}}.items():
        assert_blended(blend(checkpoints, GROUPS, name=name, **options), experts, GROUPS)


def test_experts_of_several_dtypes(save, blend):
    experts = [draw(k, dtype) for k, dtype in enumerate(FLOATS[1:])]
    found = blend([save(str(k), expert) for k, expert in enumerate(experts)], GROUPS, dtype="F32")
    assert_blended(found, experts, GROUPS)


def test_equal_groups_give_the_bytes_of_one(save, blend, tmp_path):
    checkpoints = [save(str(k), draw(k)) for k in range(3)]
    blend(checkpoints, Recipe(), [ALPHAS[0]], name="plain")
    blend(checkpoints, GROUPS, [ALPHAS[0]] * 3, name="grouped")
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "grouped.safetensors").read_bytes()


def test_the_bytes_depend_on_neither_threads_nor_memory(save, blend, tmp_path):
    checkpoints = [save(str(k), draw(k)) for k in range(3)]
    recipe = Recipe(GROUPS.groups, GROUPS.group_of, {"c": 2}, {"a": (3,)})
    texts = set()
    for n_threads, memory_bytes in ((1, 192 << 20), (4, 1 << 20)):
        options = {"n_threads": n_threads, "memory_bytes": memory_bytes}
        blend(checkpoints, recipe, made={"a": torch.arange(3.0)}, **options)
        texts.add((tmp_path / "blend.safetensors").read_bytes())
    assert len(texts) == 1


def test_a_counter_is_the_largest_among_those_that_take_part_in_its_group(save, blend):
    counters = ["bn.num_batches_tracked", "late.num_batches_tracked", "copied.num_batches_tracked"]
    recipe = Recipe(("a", "b"), {counters[1]: 1}, {counters[2]: 0})
    experts = [draw(k) | {name: torch.tensor(10 * (k + 1) + i) for i, name in enumerate(counters)} for k in range(3)]
    found = blend([save(str(k), expert) for k, expert in enumerate(experts)], recipe, [[0.5, 0.5, 0], [0, 0, 1]])
    assert [found[name].item() for name in counters] == [20, 31, 12]


# ---- copied


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [0, 2])
def test_copied_tensors_keep_their_bits(save, blend, dtype, k):
    raw = torch.randint(0, 256, (9_001 * dtype.itemsize,), dtype=torch.uint8).view(dtype)
    raw[~torch.isfinite(raw)] = -0.0
    experts = [draw(j, dtype) | {"raw": raw if j == k else torch.randn(9_001).to(dtype)} for j in range(3)]
    recipe = Recipe(GROUPS.groups, GROUPS.group_of, {"raw": k, "b": k})
    found = blend([save(str(j), expert) for j, expert in enumerate(experts)], recipe)
    for name in ("raw", "b"):
        assert torch.equal(bits(found[name]), bits(experts[k][name]))
    assert_blended(found, experts, recipe)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_head_of_another_shape_is_copied_from_one(save, blend, k):
    experts = [draw(j) | {"head": torch.randn(j + 2, 5), "ids": torch.arange(j + 3)} for j in range(3)]
    checkpoints = [save(str(j), expert) for j, expert in enumerate(experts)]
    with pytest.raises(CheckpointError, match="differ in these tensors"):
        blend(checkpoints, Recipe(), [ALPHAS[0]])
    recipe = Recipe(copied_from={"head": k, "ids": k})
    found = blend(checkpoints, recipe, [ALPHAS[0]])
    assert torch.equal(found["head"], experts[k]["head"]) and torch.equal(found["ids"], experts[k]["ids"])
    assert_blended(found, experts, recipe)


def test_a_head_that_only_one_has_is_copied_from_it_or_left_out(save, blend):
    experts = [draw(j) for j in range(3)]
    experts[1]["head"] = torch.randn(4, 5)
    checkpoints = [save(str(j), expert) for j, expert in enumerate(experts)]
    found = blend(checkpoints, Recipe(copied_from={"head": 1}), [ALPHAS[0]])
    assert torch.equal(found["head"], experts[1]["head"])
    assert "head" not in blend(checkpoints, Recipe(copied_from={"head": 0}), [ALPHAS[0]], name="without")


def test_a_copied_tensor_takes_the_dtype_asked_for(save, blend):
    experts = [draw(j) for j in range(3)]
    found = blend([save(str(j), e) for j, e in enumerate(experts)], Recipe(copied_from={"b": 1}), dtype="BF16")
    assert torch.equal(found["b"], experts[1]["b"].bfloat16())


def test_a_number_that_is_none_in_what_is_not_taken_is_no_fault(save, blend):
    experts = [draw(j) for j in range(3)]
    experts[0]["b"][3] = float("nan")
    checkpoints = [save(str(j), expert) for j, expert in enumerate(experts)]
    assert torch.equal(blend(checkpoints, Recipe(copied_from={"b": 1}))["b"], experts[1]["b"])
    with pytest.raises(CheckpointError, match=r"0\.safetensors: 'b' has nan"):
        blend(checkpoints, Recipe(copied_from={"b": 0}))


# ---- made


@pytest.mark.parametrize("dtype", [None, "F16"])
def test_made_tensors_are_written_as_given(save, blend, dtype):
    experts = [draw(j) | {"head": torch.randn(j + 2, 5), "head.bias": torch.randn(j + 2)} for j in range(3)]
    made = {"head": torch.randn(9, 5, dtype=torch.float64).T.contiguous().T, "head.bias": torch.randn(9)}
    recipe = Recipe(GROUPS.groups, GROUPS.group_of, made={name: tuple(tensor.shape) for name, tensor in made.items()})
    found = blend([save(str(j), e) for j, e in enumerate(experts)], recipe, made=made, dtype=dtype)
    for name, tensor in made.items():
        assert torch.equal(found[name], tensor.to(torch.float16 if dtype else torch.float32))
    assert_blended(found, experts, recipe)


def test_the_output_is_a_checkpoint_of_its_own(save, blend, tmp_path):
    experts = [draw(j) | {"head": torch.randn(j + 2, 5)} for j in range(3)]
    checkpoints = [save(str(j), expert) for j, expert in enumerate(experts)]
    blend(checkpoints, Recipe(made={"head": (9, 5)}), made={"head": torch.zeros(9, 5)})
    entries = read_checkpoint(tmp_path / "blend.safetensors").entries
    assert entries["head"].shape == (9, 5)
    assert {name: entries[name].shape for name in SHAPES} == SHAPES


def write_made(save, blend, tensor, dtype):
    experts = [save(str(j), draw(j) | {"bn.running_var": torch.ones(4)}) for j in range(3)]
    return blend(experts, Recipe(made={"bn.running_var": (4,)}), made={"bn.running_var": tensor}, dtype=dtype)


def test_a_made_tensor_that_the_dtype_cannot_hold_is_refused(save, blend, tmp_path):
    variances = torch.tensor([1.0, 2.0, 1e6, 3.0])
    with pytest.raises(CheckpointError, match="'bn.running_var' is too large for F16") as caught:
        write_made(save, blend, variances, "F16")
    assert caught.value.hint == "choose a wider --dtype" and not (tmp_path / "blend.safetensors").exists()
    for dtype in (None, "BF16"):
        assert write_made(save, blend, variances, dtype)["bn.running_var"].float()[2] == pytest.approx(1e6, rel=4e-3)


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
def test_a_made_tensor_that_is_not_finite_is_refused(save, blend, tmp_path, wrong):
    with pytest.raises(NumericalError, match=f"'bn.running_var' has {wrong} after it was made anew"):
        write_made(save, blend, torch.tensor([1.0, wrong, 1.0, 1.0]), None)
    assert not (tmp_path / "blend.safetensors").exists()


def test_a_made_counter_is_written_as_it_is(save, blend):
    experts = [save(str(j), draw(j) | {"bn.num_batches_tracked": torch.tensor(j)}) for j in range(3)]
    name = "bn.num_batches_tracked"
    found = blend(experts, Recipe(made={name: ()}), made={name: torch.tensor(157)}, dtype="F16")
    assert found[name].dtype == torch.int64 and found[name] == 157
