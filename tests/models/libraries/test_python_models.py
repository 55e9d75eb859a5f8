"""Models of the user's own."""

import pytest
import torch

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.foundation.errors import GlueError, ResourceError, SpecError
from glue_cli.models import build_model
from glue_cli.models.weights import load_model
from glue_cli.spec.schema import Spec

NET = """
import torch
from torch import nn

torch.randn(3)  # draws when it is imported, which must not move the weights

class Net(nn.Module):
    def __init__(self, width, depth=1):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def forward(self, x):
        return self.layers(x)

def build(width, *, depth=1):
    return Net(width, depth)

def anything(width=2, **options):
    return Net(width, options.get("depth", 1))

def nothing():
    pass

def fails(width=1):
    if width == 0:
        return nn.Linear(2, -1)
    if width < 0:
        raise SystemExit(1)
    return [][width]

def too_large():
    return nn.Linear(2**30, 2**30)
"""
FAILS = "model.arch 'python:net:fails' fails at .*net.py"


def line_of(code):
    return next(number for number, line in enumerate(NET.splitlines(), 1) if code in line)


@pytest.fixture
def build(tmp_path):
    (tmp_path / "net.py").write_text(NET)

    def build(function, args=None, seed=0):
        return build_model(f"python:net:{function}", args or {}, seed=seed, folder=tmp_path)

    return build


def test_a_function_is_given_the_arguments_by_name(build):
    model = build("build", {"width": 3, "depth": 2})
    assert [list(tensor.shape) for tensor in model.state_dict().values()] == [[3, 3], [3], [3, 3], [3]]
    assert model.training
    assert build("Net", {"width": 3}).layers[0].in_features == 3  # a class will do
    assert len(build("anything", {"depth": 2}).layers) == 2


def test_weights_are_a_pure_function_of_the_seed(build):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (build("build", {"width": 3}, seed).layers[0].weight for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.set_rng_state(before)


def test_two_folders_keep_their_own_module_of_one_name(tmp_path):
    for size in (2, 3):
        (tmp_path / str(size)).mkdir()
        (tmp_path / str(size) / "same.py").write_text(f"from torch import nn\ndef f(): return nn.Linear({size}, 1)")
    models = [build_model("python:same:f", {}, seed=0, folder=tmp_path / str(size)) for size in (2, 3, 2)]
    assert [model.in_features for model in models] == [2, 3, 2]


def test_a_module_in_a_package_and_an_installed_one(tmp_path):
    package = tmp_path / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sizes.py").write_text("WIDTH = 5")
    (package / "small.py").write_text("from torch import nn\nfrom .sizes import WIDTH\ndef f(): return nn.ReLU(WIDTH)")
    assert isinstance(build_model("python:nets.small:f", {}, seed=0, folder=tmp_path), torch.nn.ReLU)
    linear = build_model("python:torch.nn:Linear", {"in_features": 2, "out_features": 3}, seed=0, folder=tmp_path)
    assert linear.weight.shape == (3, 2)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("python:nat:build", "model.arch: there is no module 'nat'"),
        ("python:net:bild", "has no function 'bild'"),
        ("python:net:torch", "'torch' in .* is a module, wanted a function"),
        ("python:net", "model.arch: found 'python:net', wanted python:MODULE:FUNCTION"),
        ("python:net:nothing", "model.arch 'python:net:nothing' gives a NoneType, wanted a torch.nn.Module"),
        ("python:net:fails", rf"{FAILS}:{line_of('[][width]')}: IndexError: list index out of range"),
        ("python:broken:f", "importing 'broken' fails: .*broken.py:2: ZeroDivisionError: division by zero"),
    ],
)
def test_what_gives_no_model_is_refused(build, tmp_path, arch, message):
    (tmp_path / "broken.py").write_text("\n1 / 0")
    with pytest.raises(SpecError, match=message):
        build_model(arch, {}, seed=0, folder=tmp_path)


def test_a_fault_deeper_than_the_users_file_is_placed_in_the_users_file(build):
    with pytest.raises(SpecError, match=rf"{FAILS}:{line_of('nn.Linear(2, -1)')}: RuntimeError: .*negative dimension"):
        build("fails", {"width": 0})


def test_a_function_that_would_leave_does_not(build):
    with pytest.raises(SpecError, match="fails at .*SystemExit: 1"):
        build("fails", {"width": -1})


def test_a_model_that_memory_cannot_hold(build):
    with pytest.raises(ResourceError, match="'python:net:too_large' .*do not fit into memory"):
        build("too_large")


def test_every_fault_of_the_arguments_is_reported(build):
    with pytest.raises(SpecError) as caught:
        build("build", {"widht": 3, "depth": 2})
    assert caught.value.message == "model.args: 2 arguments do not fit 'python:net:build'"
    assert caught.value.items == (
        "model.args.widht: 'python:net:build' has no argument 'widht'; did you mean 'width'?",
        "model.args.width: missing",
    )
    assert caught.value.hint == "the function takes (width, *, depth=1)"
    with pytest.raises(SpecError, match="model.args.width: missing"):
        build("build")


def test_a_name_in_a_checkpoint_is_never_imported(tmp_path):
    """Only the spec names code: what a checkpoint says of its model is not heeded."""
    (tmp_path / "evil.py").write_text("raise AssertionError('imported')")
    path = tmp_path / "expert.safetensors"
    model = build_model("cnn", {"width": 2}, seed=0)
    metadata = {"model": {"arch": "python:evil:f", "args": {"path": "evil"}}}
    write_checkpoint(path, model.state_dict(), metadata)
    checkpoint = read_checkpoint(path)
    assert checkpoint.glue == metadata
    data = {"format": "safetensors", "root": "data"}
    spec = Spec.model_validate({"model": {"arch": "cnn", "args": {"width": 2}}, "data": data}).located_in(tmp_path)
    loaded = load_model(spec, checkpoint)
    assert torch.equal(loaded.head.weight, model.head.weight)
    evil = spec.model_copy(update={"model": spec.model.model_copy(update={"arch": "python:evil:f", "args": {}})})
    with pytest.raises(GlueError, match="imported"):  # the very file is imported when the spec does name it
        load_model(evil.located_in(tmp_path), checkpoint)
