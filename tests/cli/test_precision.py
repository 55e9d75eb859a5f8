"""Models that do not run in bfloat16: an LSTM on a CPU without AVX-512, sums in float32 of a layer's outputs."""

import pytest

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(64, 10)
    def forward(self, images):
        sums = torch.zeros(len(images), 10)
        return sums.index_add(0, torch.arange(len(images)), self.body(images.flatten(1)))

def build():
    return Net()
"""
OF_NET = ("--set", "model={arch: 'python:own_net:build'}")


@pytest.fixture
def commands(here, glue):
    (here / "own_net.py").write_text(NET)
    for k in range(2):
        glue("train-expert", "--expert", k, *OF_NET, "--precision", "fp32", "-o", f"{k}.safetensors", "-q", code=0)
    return [
        ["train-expert", "--expert", 0, "-o", "2.safetensors"],
        ["mix", "--method", "spsa", "0.safetensors", "1.safetensors", "-f"],
        ["mix", "--method", "fullgrad", "0.safetensors", "1.safetensors", "-f"],
        ["mix", "--method", "spsa", "0.safetensors", "1.safetensors", "-f", "--bank", "streamed"],
        ["finetune", "0.safetensors", "-f"],
        ["evaluate", "0.safetensors"],
    ]


def test_auto_takes_float32(glue, commands):
    for command in commands:
        answer = glue(*command, *OF_NET, "--precision", "auto", code=0)
        assert "streamed" in command or "bf16 does not run here" in answer.err or "as timed before" in answer.err


def test_bfloat16_is_refused_with_the_reason(glue, commands):
    for command in commands:
        parts = ["the model does not run in bfloat16 on this device", "BFloat16", "--precision fp32"]
        glue(*command, *OF_NET, "--precision", "bf16", "-q").refused(5, *parts)
