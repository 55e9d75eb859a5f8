"""Adapters beside a base whose weights a library has quantised; a stand-in is the library."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glue_cli.blend.adapters.adapted_base import fit
from glue_cli.blend.adapters.adapter import read_adapter
from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.running.device import Compute
from glue_cli.search.adapters.fit import find_obstacle, fit_adapters

CPU = Compute(torch.device("cpu"))
K = 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedded = nn.Embedding(9, 6)
        self.first, self.last, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 7), nn.Linear(7, 3)
        self.norm = nn.LayerNorm(7)

    def forward(self, inputs):
        hidden = torch.tanh(self.last(torch.tanh(self.first(self.embedded(inputs)))))
        return self.head(self.norm(hidden.mean(1)))


class Coded(nn.Module):
    """A linear layer of codes. Its scales are no parameter, and it keeps them beside its weight, as libraries do."""

    def __init__(self, linear):
        super().__init__()
        self.state = {"scales": linear.weight.detach().abs().amax(1, keepdim=True) / 127}
        codes = (linear.weight / self.state["scales"]).round().to(torch.int8)
        self.weight, self.bias = nn.Parameter(codes, requires_grad=False), linear.bias

    def dequantised(self):
        return self.weight * self.state["scales"]

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.dequantised(), self.bias)


def quantised(net):
    net = copy.deepcopy(net)
    net.first, net.last = Coded(net.first), Coded(net.last)
    return net


@pytest.fixture(scope="module")
def peft(torchvision):
    return pytest.importorskip("peft")


@pytest.fixture
def case(peft, tmp_path):
    """Return the quantised base, the blends beside it, and each adapter as PEFT's, on the dequantised base."""

    def make(**config):
        torch.manual_seed(0)
        net = Net().eval()
        save_file(net.state_dict(), tmp_path / "base.safetensors")
        base, models = quantised(net), []
        dequantised = copy.deepcopy(net)
        for name in ("first", "last"):
            dequantised.get_submodule(name).weight.data = base.get_submodule(name).dequantised()
        for k in range(K):
            settings = {"r": k + 1, "lora_alpha": 2, "target_modules": ["first", "last"], **config}
            model = peft.get_peft_model(copy.deepcopy(dequantised), peft.LoraConfig(**settings))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    nn.init.normal_(parameter, std=0.4)
            model.save_pretrained(tmp_path / str(k))
            models.append(model.eval())
        adapters = [read_adapter(tmp_path / str(k)) for k in range(K)]
        adapted = replace(fit(read_checkpoint(tmp_path / "base.safetensors"), adapters), quantised_by="a stand-in")
        naming = Naming({name: Source((name,)) for name in net.state_dict()}, ())
        assert find_obstacle(net, adapted, naming) is None
        return base, fit_adapters(base, adapted, naming, CPU, seed=0), models

    return make


KINDS = {"linear": {}, "embedding": {"target_modules": ["first", "embedded"]}, "a head": {"modules_to_save": ["head"]}}
BATCH = torch.randint(0, 9, (4, 8), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter_computes_what_peft_does(case, kind):
    _, blends, models = case(**KINDS[kind])
    one_hot = torch.eye(K, dtype=torch.float64)[:, None]
    for (found, _), model in zip(blends.outputs(one_hot, [BATCH], 0), models, strict=True):
        torch.testing.assert_close(found, model(BATCH[0]).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_what_was_searched(case, kind):
    _, blends, _ = case(**KINDS[kind])
    alpha = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    ((wanted, _),) = blends.outputs(alpha[None], [BATCH], 0)
    written = blends.as_written({})
    written.load(alpha)
    ((found, _),) = written.outputs([BATCH])
    assert torch.equal(found, wanted)
    ((other, _),) = blends.outputs(alpha.flip(1)[None], [BATCH], 0)
    assert not torch.equal(other, wanted)


def test_no_copy_of_the_base_is_made(case):
    base, blends, _ = case()
    assert blends.model is base and blends.as_written({})._adapted.module is base


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_slope(case, kind):
    _, blends, _ = case(**KINDS[kind])

    def mean_loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    alpha = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    _, slope = blends.gradient(alpha, BATCH, 0, mean_loss)
    step = 1e-2 * torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    ends = [mean_loss(o, t).item() for o, t in blends.outputs(torch.stack([alpha + step, alpha - step]), [BATCH], 0)]
    assert (ends[0] - ends[1]) / 2 == pytest.approx((slope * step).sum().item(), rel=0.02, abs=1e-5)
