import pytest
import torch
from torch import nn

from glue_cli.foundation.errors import PrecisionError, ResourceError
from glue_cli.running.device import Compute, find_device, likes_channels_last, make_repeatable

CPU = torch.device("cpu")


def test_the_cpu_is_always_there(monkeypatch):
    assert find_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:99"])
def test_a_gpu_that_is_not_there(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=f"no device '{name}': torch sees 0 CUDA devices"):
        find_device(name)


@pytest.fixture
def cudnn_flags(monkeypatch):
    """Set cuDNN's flags as torch has them at first, for this test alone."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


def flags():
    return torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32


def test_finding_a_gpu_sets_no_flag(monkeypatch, cudnn_flags):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert [find_device(name) for name in ("auto", "cuda", "cuda:1")] == [
        torch.device("cuda:0"),
        torch.device("cuda:0"),
        torch.device("cuda:1"),
    ]
    assert flags() == (False, True)


def test_flags_are_set_for_a_gpu_alone(cudnn_flags):
    make_repeatable(CPU)
    assert flags() == (False, True)
    make_repeatable(torch.device("cuda:0"))
    assert flags() == (True, False)


def run_that_says(text, precision):
    with Compute(CPU, precision).autocast():
        raise RuntimeError(text)


@pytest.mark.parametrize(
    "said",
    [
        "could not create a primitive descriptor for the LSTM forward propagation primitive",
        "\"inverse_cpu\" not implemented for 'BFloat16'",
        "expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16",
    ],
)
def test_an_operation_that_there_is_not_in_bfloat16_is_said(said):
    with pytest.raises(PrecisionError, match="does not run in bfloat16 on this device: ") as caught:
        run_that_says(f"{said}\nand more", "bf16")
    assert caught.value.message.endswith(said) and caught.value.hint == "--precision fp32"
    with pytest.raises(RuntimeError, match="and more"):
        run_that_says(f"{said}\nand more", "fp32")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_that_says("mat1 and mat2 shapes cannot be multiplied", "bf16")


def test_compute_moves_and_casts():
    model = Compute(CPU, "bf16", channels_last=True).to_device(nn.Conv2d(2, 3, 3))
    assert model.weight.is_contiguous(memory_format=torch.channels_last) and model.weight.dtype == torch.float32
    with Compute(CPU, "bf16").autocast():
        assert model(torch.zeros(1, 2, 5, 5)).dtype == torch.bfloat16
    with Compute(CPU, "fp32").autocast():
        assert model(torch.zeros(1, 2, 5, 5)).dtype == torch.float32


def test_convolutional_nets_like_channels_last():
    assert likes_channels_last(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)))
    assert not likes_channels_last(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(1, 1)))
