"""What holds for every architecture, and what the registry refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import glue_cli.models
from glue_cli.foundation.errors import DataError, ResourceError, SpecError
from glue_cli.models import ARCHITECTURES, build_model, check_architecture

# Arguments and images that keep a test quick: arch -> (args, shape of a batch).
SMALL = {
    "cnn": ({}, (4, 1, 8, 8)),
    "resnet20": ({}, (4, 3, 16, 16)),
    "mobilenet_v2": ({"num_classes": 10, "stem_stride": 1}, (4, 3, 32, 32)),
    "vit": ({"image_size": 16, "depth": 2}, (4, 3, 16, 16)),
}
KNOWN = (
    "glue knows 'cnn', 'resnet20', 'mobilenet_v2', 'vit', "
    "and takes torchvision:NAME, timm:NAME, transformers:CLASS, python:MODULE:FUNCTION"
)
EVERY = pytest.mark.parametrize("arch", ARCHITECTURES)


def build_small(arch: str, *, seed: int = 0) -> nn.Module:
    return build_model(arch, SMALL[arch][0], seed=seed)


def make_images(arch: str) -> torch.Tensor:
    return torch.randn(SMALL[arch][1], generator=torch.Generator().manual_seed(5))


def settle_batchnorm(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Give the running statistics real values, so that evaluation is well scaled."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def assert_close(got: torch.Tensor, wanted: torch.Tensor, *, relative: float) -> None:
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=relative * wanted.abs().max().item())


def test_importing_the_registry_imports_no_torch():
    code = (
        "import sys, glue_cli.models as m\n"
        "for arch in 'vit', 'timm:a', 'torchvision:a', 'transformers:A', 'python:evil:f': m.check_architecture(arch)\n"
        "print({'torch', 'timm', 'torchvision', 'transformers', 'evil'} & set(sys.modules))"
    )
    root = Path(glue_cli.models.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@EVERY
def test_logits_have_a_row_an_image_and_a_column_a_class(arch):
    args, shape = SMALL[arch]
    model = build_model(arch, {**args, "num_classes": 7}, seed=0)
    assert model.training
    logits = model(make_images(arch))
    assert logits.shape == (shape[0], 7)
    assert logits.isfinite().all()


@EVERY
def test_gradient_reaches_every_parameter(arch):
    model = build_small(arch)
    nn.functional.cross_entropy(model(make_images(arch)), torch.arange(4)).backward()
    stuck = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert stuck == []


@EVERY
def test_every_parameter_and_buffer_is_a_plain_cpu_tensor_of_its_own(arch):
    state = build_small(arch).state_dict()
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


@EVERY
def test_an_image_is_answered_alike_in_any_batch(arch):
    images = make_images(arch)
    model = settle_batchnorm(build_small(arch), images)
    with torch.no_grad():
        assert_close(model(images[1:2]), model(images)[1:2], relative=1e-4)


@EVERY
def test_channels_last_gives_the_same_logits(arch):
    images = make_images(arch)
    model = settle_batchnorm(build_small(arch), images)
    with torch.no_grad():
        wanted = model(images)
        model.to(memory_format=torch.channels_last)
        assert_close(model(images.contiguous(memory_format=torch.channels_last)), wanted, relative=1e-4)


@EVERY
@pytest.mark.parametrize("bf16", [False, True])
def test_no_layer_leaves_channels_last(arch, bf16):
    model = build_small(arch).to(memory_format=torch.channels_last)
    strayed = []

    def note_layout(module, args, out):
        if out.ndim == 4 and not out.is_contiguous(memory_format=torch.channels_last):
            strayed.append(type(module).__name__)

    for module in model.modules():
        module.register_forward_hook(note_layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(make_images(arch).contiguous(memory_format=torch.channels_last))
    assert strayed == []


@EVERY
def test_bfloat16_autocast_stays_near_float32(arch):
    # Without settled statistics: they make an untrained MobileNetV2 amplify rounding, float32's too, by 35.
    images = make_images(arch)
    model = build_small(arch).eval()
    with torch.no_grad():
        wanted = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            got = model(images)
    assert got.dtype == torch.bfloat16  # autocast did reach the head
    assert_close(got, wanted, relative=0.05)


@EVERY
def test_weights_are_a_pure_function_of_the_seed(arch):
    torch.manual_seed(1)
    first = build_small(arch, seed=3).state_dict()
    torch.manual_seed(2)
    torch.randn(5)
    with torch.device("meta"):
        again = build_small(arch, seed=3).state_dict()
    other = build_small(arch, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    weights = [name for name, tensor in first.items() if tensor.ndim > 1]
    assert weights and not any(torch.equal(first[name], other[name]) for name in weights)


@EVERY
def test_the_global_random_state_is_left_alone(arch, monkeypatch):
    def seed_cuda(seed):
        raise AssertionError("CUDA's generators were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seed_cuda)
    before = torch.get_rng_state()
    build_small(arch)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_architecture_is_refused_with_the_nearest_name():
    with pytest.raises(SpecError) as caught:
        check_architecture("resnet18")
    assert caught.value.message == "model.arch: 'resnet18' is not an architecture that glue knows"
    assert caught.value.hint == f"did you mean 'resnet20'? {KNOWN}"


def test_a_name_near_to_none_gets_the_list_alone():
    with pytest.raises(SpecError) as caught:
        build_model("transformer9000", {}, seed=0)
    assert caught.value.hint == KNOWN


@pytest.mark.parametrize(
    ("arch", "guess"),
    [
        ("torchvison:resnet18", "did you mean 'torchvision:resnet18'? "),
        ("transformer:AutoModel", "did you mean 'transformers:AutoModel'? "),
        ("qqq:resnet18", ""),
        ("timm:", ""),
        (":resnet18", ""),
        ("timm", ""),
    ],
)
def test_a_library_that_is_not_known_is_refused(arch, guess):
    with pytest.raises(SpecError) as caught:
        check_architecture(arch)
    assert caught.value.message == f"model.arch: '{arch}' is not an architecture that glue knows"
    assert caught.value.hint == guess + KNOWN


def test_an_unknown_argument_is_refused_with_the_nearest_name_and_what_is_accepted():
    with pytest.raises(SpecError) as caught:
        build_model("cnn", {"widht": 8}, seed=0)
    assert caught.value.message == "model.args.widht: 'cnn' has no argument 'widht'; did you mean 'width'?"
    assert caught.value.items == ()
    assert caught.value.hint == "'cnn' accepts num_classes=10, in_channels=1, width=32"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("ten", "a valid integer"),
        ("10", "a valid integer"),
        (2.5, "a valid integer"),
        (True, "a valid integer"),
        (None, "a valid integer"),
        ([10], "a valid integer"),
        (0, "greater than or equal to 1"),
        (-3, "greater than or equal to 1"),
        (10**30, "less than or equal to 1000000"),
    ],
)
@EVERY
def test_a_wrong_count_is_refused(arch, value, wanted):
    with pytest.raises(SpecError) as caught:
        build_model(arch, {"num_classes": value}, seed=0)
    assert caught.value.message == f"model.args.num_classes: got {value!r}, wanted {wanted}"
    assert caught.value.hint is not None and caught.value.hint.startswith(f"'{arch}' accepts num_classes=")


def test_every_fault_of_the_arguments_is_reported():
    with pytest.raises(SpecError) as caught:
        build_model("cnn", {"depth": 3, "in_channels": 3, "num_classes": "ten"}, seed=0)
    assert caught.value.message == "model.args: 2 arguments do not fit 'cnn'"
    assert caught.value.items == (
        "model.args.depth: 'cnn' has no argument 'depth'; did you mean 'width'?",
        "model.args.num_classes: got 'ten', wanted a valid integer",
    )


def test_weights_that_memory_cannot_hold_are_refused(monkeypatch):
    def grow(width: int = 1) -> nn.Module:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 72000000000000 bytes")

    monkeypatch.setattr("glue_cli.models.cnn.cnn", grow)
    with pytest.raises(ResourceError) as caught:
        build_model("cnn", {"width": 9}, seed=0)
    assert caught.value.message == "model: the weights of 'cnn' with width=9 do not fit into memory"


def test_a_bug_in_an_architecture_keeps_its_own_error(monkeypatch):
    def break_down() -> nn.Module:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("glue_cli.models.cnn.cnn", break_down)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        build_model("cnn", {}, seed=0)


@EVERY
def test_images_with_other_channels_are_refused(arch):
    images = make_images(arch)
    n, channels, height, width = images.shape
    with pytest.raises(DataError) as caught:
        build_small(arch)(torch.cat([images, images], dim=1))
    assert f"images of shape [N, {channels}, " in caught.value.message
    assert caught.value.message.endswith(f"the data has [{n}, {2 * channels}, {height}, {width}]")
    assert caught.value.hint == "set 'model.args.in_channels'"


def test_modules_that_cannot_be_searched_say_what_to_do(tmp_path):
    (tmp_path / "odd.py").write_text(
        "import torch, warnings\ndef lazy(): return torch.nn.Sequential(torch.nn.LazyLinear(3))\n"
        "def scripted():\n    warnings.simplefilter('ignore')  # it is deprecated\n"
        "    return torch.nn.Sequential(torch.jit.script(torch.nn.Linear(2, 3)))\n"
    )
    with pytest.raises(SpecError, match="'0.weight' is lazy and has no shape yet") as caught:
        build_model("python:odd:lazy", {}, seed=0, folder=tmp_path)
    assert "forward pass on dummy inputs" in caught.value.hint
    with pytest.raises(SpecError, match="gives a ScriptModule"):
        build_model("python:odd:scripted", {}, seed=0, folder=tmp_path)
    with pytest.raises(SpecError, match="ends in '.py'") as caught:
        build_model("python:odd.py:lazy", {}, seed=0, folder=tmp_path)
    assert caught.value.hint == "name the module without it: odd"
