"""Names of the same tensors in several spellings."""

import pytest
import torch
from torch import nn

from glue_cli.checkpoints.spelling import align_names

NAMES = ["stem.weight", "stem.bias", "blocks.0.fc.weight", "blocks.1.fc.weight", "head.weight"]


def test_equal_names_are_their_own():
    assert align_names(NAMES, NAMES) == {name: name for name in NAMES}


@pytest.mark.parametrize(
    "prefix", ["module.", "module.module.", "_orig_mod.", "model.", "net.model.", "module.model."]
)
def test_a_prefix_of_either_side(prefix):
    wrapped = [prefix + name for name in NAMES]
    assert align_names(wrapped, NAMES) == dict(zip(wrapped, NAMES, strict=True))
    assert align_names(NAMES, wrapped) == dict(zip(NAMES, wrapped, strict=True))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.model.", "_orig_mod."])
def test_a_model_whose_submodule_is_called_module(prefix):
    names = ["module.weight", "module.bias", "head.weight"]
    wrapped = [prefix + name for name in names]
    assert align_names(wrapped, names) == dict(zip(wrapped, names, strict=True))
    assert align_names(wrapped[:2], names[:2]) == dict(zip(wrapped[:2], names[:2], strict=True))


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_parts(wrapper):
    wrapped = [name.replace("fc.", f"{wrapper}.fc.") for name in NAMES]
    assert align_names(wrapped, NAMES) == dict(zip(wrapped, NAMES, strict=True))
    strange = [name.replace("fc.", f"my{wrapper}.") for name in NAMES]  # a module that is called so
    assert set(align_names(strange, NAMES)) == {"stem.weight", "stem.bias", "head.weight"}


def test_what_only_one_side_has_is_left_out():
    found = align_names(["model.a", "model.b", "criterion.c"], ["a", "b", "d"])
    assert found == {"model.a": "a", "model.b": "b"}


@pytest.mark.parametrize(
    "names",
    [
        ["student.a", "student.b", "teacher.a", "teacher.b"],  # two prefixes fit
        ["a", "module.a", "b"],  # two names fit
    ],
)
def test_what_is_not_clear_is_left_alone(names):
    assert align_names(names, ["a", "b"]) == {}


def test_most_names_decide():
    names = ["encoder.0.weight", "encoder.1.weight", "decoder.0.weight"]
    assert align_names(names, ["0.weight", "1.weight"]) == {
        "encoder.0.weight": "0.weight",
        "encoder.1.weight": "1.weight",
    }


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_torchs_own_parametrisations_load_from_each_other(kind):
    """The numbers mean the same in both: the model computes the same from them."""
    torch.manual_seed(0)
    old = nn.Sequential(getattr(nn.utils, kind)(nn.Linear(3, 4))).eval()
    new = nn.Sequential(getattr(nn.utils.parametrizations, kind)(nn.Linear(3, 4))).eval()
    spelling = align_names(old.state_dict().keys(), new.state_dict().keys())
    assert set(spelling) == set(old.state_dict()) and set(spelling.values()) == set(new.state_dict())
    new.load_state_dict({spelling[name]: tensor for name, tensor in old.state_dict().items()})
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(new(inputs), old(inputs))


def test_names_without_a_dot_and_none_at_all():
    assert align_names(["w"], ["w"]) == {"w": "w"}
    assert align_names([], ["w"]) == {} == align_names(["w"], [])
    assert align_names(["x.w"], ["w"]) == {"x.w": "w"}


def test_thousands_of_names_take_no_time():
    names = [f"model.layers.{i}.attention.self.query.weight" for i in range(20_000)]
    wanted = [name.removeprefix("model.") for name in names]
    assert align_names(names, wanted) == dict(zip(names, wanted, strict=True))
