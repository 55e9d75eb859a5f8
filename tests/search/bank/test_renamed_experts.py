"""Banks by a model's names, of experts that name and cut their tensors in another way."""

import pytest
import torch

from glue_cli.blend.recipe import PLAIN, Recipe
from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.foundation.errors import CheckpointError, SpecError, UsageError
from glue_cli.search.bank import load
from glue_cli.search.bank.load import choose_bank, load_bank

CPU = torch.device("cpu")
PARTS = ("old.0", "old.1", "old.2")
RENAMED = {"new": Source(("old",)), "alias": Source(("old",)), "kept": Source(("kept",))}
MERGED = {**RENAMED, "stack": Source(PARTS, torch.stack), "left": Source(("both",), lambda parts: parts[0][:2])}
MERGED["right"] = Source(("both",), lambda parts: parts[0][2:])
ALPHA = torch.tensor([[[0.25, 0.75]]], dtype=torch.float64)


@pytest.fixture
def experts(save):
    def experts(dtype=torch.float32, **changes):
        names = {"old": (3, 2), "kept": (4,), "both": (5,), **dict.fromkeys(PARTS, (2, 3))}
        saved = []
        for k in range(2):
            tensors = {name: torch.randn(shape).to(dtype) for name, shape in names.items()}
            saved.append(save(str(k), tensors | changes))
        return saved

    return experts


def blend(bank, alpha=ALPHA):
    row = torch.empty(1, bank.n_columns)
    bank.blend(alpha.expand(1, bank.n_groups, 2), row)
    return {name: place.view(row[0]).clone() for name, place in bank.spans.items()}


def tensors_of(expert):
    from safetensors.torch import load_file

    return load_file(expert.path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sources", [RENAMED, MERGED], ids=["renamed", "merged"])
def test_the_blend_of_what_is_made_is_what_is_made_of_the_blend(experts, sources, dtype):
    saved = experts(dtype)
    found = blend(load_bank(saved, device=CPU, naming=Naming(sources, ())))
    assert found.keys() == sources.keys() - {"alias"}  # tied to `new`
    one, other = map(tensors_of, saved)
    mean = {name: 0.25 * one[name].float() + 0.75 * other[name].float() for name in one}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, sources[name].take(mean))


def test_a_bank_on_disk_reads_renamed_tensors(experts):
    saved, naming = experts(), Naming(RENAMED, ())
    banks = [load_bank(saved, device=CPU, naming=naming, kind=kind) for kind in ("device", "disk")]
    in_memory, on_disk = map(blend, banks)
    assert in_memory.keys() == on_disk.keys() == {"new", "kept"}
    for name, tensor in in_memory.items():
        torch.testing.assert_close(on_disk[name], tensor)


def test_rules_have_the_names_on_disk(experts):
    recipe = Recipe(("a", "b"), group_of={"old": 1, **dict.fromkeys(PARTS, 1)}, copied_from={"kept": 1}, made={})
    saved = experts()
    bank = load_bank(saved, device=CPU, recipe=recipe, naming=Naming(MERGED, ()))
    assert bank.spans.keys() == {"new", "stack", "left", "right"}
    alpha = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    found, one, other = blend(bank, alpha), *map(tensors_of, saved)
    assert torch.equal(found["left"], one["both"][:2]) and torch.equal(found["new"], other["old"])
    assert torch.equal(found["stack"], torch.stack([other[part] for part in PARTS]))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(("a", "b"), group_of={"old.1": 1}), "'old.1' is in the group 'b'"),
        (Recipe(copied_from={"old.1": 0}), "'old.1' is copied from expert 0"),
        (Recipe(made={"old.1": (2, 3)}), "'old.1' is made anew"),
    ],
)
def test_parts_of_one_tensor_are_treated_alike(experts, recipe, said):
    with pytest.raises(SpecError, match="the model holds 'stack' as one tensor") as caught:
        load_bank(experts(), device=CPU, recipe=recipe, naming=Naming(MERGED, ()))
    assert len(caught.value.items) == 3 and said in caught.value.items


@pytest.mark.parametrize("kind", ["device", "disk"])
def test_a_nan_is_named_as_in_the_file(experts, kind):
    saved = experts(old=torch.full((3, 2), float("nan")))
    with pytest.raises(CheckpointError, match="'old' has nan"):
        load_bank(saved, device=CPU, naming=Naming(RENAMED, ()), kind=kind)


def test_a_nan_in_a_part_is_named_by_the_part(experts):
    saved = experts(**{"old.1": torch.full((2, 3), float("inf"))})
    with pytest.raises(CheckpointError, match=r"'old\.1' has inf"):
        load_bank(saved, device=CPU, naming=Naming(MERGED, ()))


def test_parts_that_do_not_go_together(experts):
    saved = experts(**{"old.1": torch.ones(2, 4)})
    with pytest.raises(CheckpointError, match="'stack' cannot be made from 'old.0' and 2 more"):
        load_bank(saved, device=CPU, naming=Naming(MERGED, ()))


def test_what_is_made_of_several_is_not_read_from_a_disk(experts, monkeypatch):
    saved, said = experts(), []
    options = {"device": CPU, "n_blends": 1, "progress": said.append}
    with pytest.raises(UsageError, match="the model makes 3 tensors from several tensors in the files") as caught:
        choose_bank("disk", saved, PLAIN, **options, naming=Naming(MERGED, ()))
    assert caught.value.items == ("stack", "left", "right") and caught.value.hint == "--bank streamed"
    assert choose_bank("disk", saved, PLAIN, **options, naming=Naming(RENAMED, ())) == "disk"
    monkeypatch.setattr(load, "free_memory", lambda device: 1)  # so that it fits nowhere
    options["needs_gradient"] = True
    assert choose_bank("auto", saved, PLAIN, **options, naming=Naming(RENAMED, ())) == "disk"
    assert choose_bank("auto", saved, PLAIN, **options, naming=Naming(MERGED, ())) == "device"
