import json

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.blend.classes import ComparedClasses, compare_classes, compare_classes_of_adapters
from glue_cli.blend.comparing import compare
from glue_cli.blend.misfit import refuse
from glue_cli.blend.recipe import PLAIN
from glue_cli.blend.rules import plan_recipe
from glue_cli.blend.tensor_rules import TensorRules
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

CATS = ["cat", "dog"]


@pytest.fixture
def make(tmp_path):
    """Save a folder with a body and a head of as many rows, and say these classes."""

    def make(name, classes=None, head="classifier", n=2):
        tensors = {
            "body.weight": torch.zeros(3, 4),
            f"{head}.weight": torch.zeros(n, 4),
            f"{head}.bias": torch.ones(n),
        }
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        said = {"id2label": dict(enumerate(classes))} if classes else {}
        (tmp_path / name / "config.json").write_text(json.dumps(said))
        return read_checkpoint(tmp_path / name)

    return make


def planned(experts, **rules):
    return plan_recipe(experts, TensorRules(**rules), {})[0]


def refused(experts, recipe=PLAIN):
    with pytest.raises(CheckpointError) as caught:
        refuse(compare(experts, recipe, dtype_given=False).misfits)
    return caught.value


def test_one_order_is_that_of_the_blend(make):
    experts = [make("a", CATS), make("b", ["Cat", "DOG"]), make("c", ["cat", "dog"])]
    assert compare_classes(experts, PLAIN) == ComparedClasses(("cat", "dog"))
    assert compare(experts, PLAIN, dtype_given=False).classes == ("cat", "dog")


def test_nobody_says_the_classes(make):
    experts = [make("a"), make("b", ["LABEL_0", "LABEL_1"])]
    assert compare_classes(experts, PLAIN) == ComparedClasses()


def test_another_order_is_refused_with_the_way_to_align_it(make):
    error = refused([make("a", CATS), make("b", CATS), make("c", CATS[::-1])])
    assert error.message == "the experts know their classes in different orders"
    assert [item.rpartition("/")[2] for item in error.items] == ["a: cat, dog", "b: cat, dog", "c: dog, cat"]
    assert error.hint == "align them by name: --head 'classifier.*' --head-policy align"


def test_other_classes_are_refused(make):
    error = refused([make("a", CATS), make("b", ["ant", "cat"])])
    assert error.message == "the experts know different classes" and len(error.items) == 2


def test_a_head_that_is_blended_on_purpose_is_refused_likewise(make):
    experts = [make("a", CATS), make("b", CATS[::-1])]
    assert "different orders" in refused(experts, planned(experts, head="classifier.*")).message


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ({"head": "classifier.*", "head_policy": "align"}, ()),
        ({"head": "classifier.*", "head_policy": "reset"}, ()),
        ({"head": "classifier.*", "head_policy": "from:b"}, ("dog", "cat")),
        ({"exclude": ("classifier.*",), "copy_from": "b"}, ("dog", "cat")),
        ({"include": ("body.*",), "copy_from": "a"}, ("cat", "dog")),
    ],
)
def test_a_head_that_is_not_blended_may_be_any(make, rules, names):
    experts = [make("a", CATS), make("b", CATS[::-1])]
    assert compare_classes(experts, planned(experts, **rules)).names == names


def test_half_a_head_that_is_left_out_is_no_excuse(make):
    experts = [make("a", CATS), make("b", CATS[::-1])]
    recipe = planned(experts, exclude=("*.bias", "body.*"), copy_from="b")
    assert "different orders" in refused(experts, recipe).message


def test_a_backbone_alone_has_no_classes(make):
    experts = [make("a", CATS, n=7), make("b", ["ant", "cat"], n=7)]  # no tensor has two rows
    assert compare_classes(experts, PLAIN) == ComparedClasses()


def test_a_head_without_the_name_of_one_is_found_by_its_rows(make):
    error = refused([make("a", CATS, head="top"), make("b", CATS[::-1], head="top")])
    assert "--head 'top.*'" in error.hint


def test_numbers_for_names_are_numbers(make):
    experts = [make("a", ["0", "1"]), make("b", CATS)]
    assert compare_classes(experts, PLAIN) == ComparedClasses(("cat", "dog"))
    assert compare_classes(experts[::-1], PLAIN) == ComparedClasses(("cat", "dog"))


def test_who_does_not_say_the_classes_is_named(make):
    experts = [make("a"), make("b", CATS), make("c"), make("d")]
    found = compare_classes(experts, PLAIN)
    [note] = found.notes
    assert found.names == ("cat", "dog") and note.endswith("taken to be those of the others: cat, dog")
    assert note.startswith(f"{experts[0].path} and 2 more do not say")
    assert compare_classes(experts[:2], PLAIN).notes[0].startswith(f"{experts[0].path} does not say")


def test_adapters_have_the_classes_of_their_base_unless_they_say_others(make):
    base, silent = make("base", CATS), make("silent")
    assert compare_classes_of_adapters([silent, silent], base).names == ("cat", "dog")
    assert compare_classes_of_adapters([silent, silent], None) == ComparedClasses()
    with pytest.raises(CheckpointError, match="in different orders") as caught:
        refuse(compare_classes_of_adapters([make("a", CATS), make("b", CATS[::-1])], base).misfits)
    assert "--head" not in caught.value.hint
