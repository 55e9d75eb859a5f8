"""Modules that reach their weights otherwise than by the names that these are registered under."""

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.foundation.errors import SpecError

TOP = """
import torch
from torch import nn
from torch.nn import functional as F

LEFT = {}

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 4)
        self.make()

    def make(self):
        pass

    def forward(self, images):
        return self.last(self.middle(torch.tanh(self.first(images.flatten(1)))))

    def middle(self, hidden):
        return hidden
"""
NETS = {
    "plain": "pass",
    "what another layer has left in a global variable": """
    def middle(self, hidden):
        LEFT["here"] = hidden
        return self.again(hidden)
    def make(self):
        self.again = nn.Linear(64, 64)
    def forward(self, images):
        hidden = self.middle(torch.tanh(self.first(images.flatten(1))))
        return self.last(hidden + LEFT["here"])
""",
    "random": """
    def middle(self, hidden):
        return hidden + 0.3 * torch.randn_like(hidden)
""",
    "in bfloat16": """
    def make(self):
        self.bfloat16()
    def forward(self, images):
        return super().forward(images.to(self.first.weight.dtype)).float()
""",
    "a copy kept from its first forward": """
    def middle(self, hidden):
        if not hasattr(self, "kept"):
            self.kept = [self.first.weight.detach().t().clone()]
        return hidden @ self.kept[0]
""",
    "the first weight again": """
    def middle(self, hidden):
        return hidden @ self.first.weight.t()
""",
    "the first weight again, kept until train()": """
    def make(self):
        self.kept = None
    def train(self, mode=True):
        self.kept = None if mode else self.kept
        return super().train(mode)
    def middle(self, hidden):
        if self.kept is None or self.training:
            self.kept = self.first.weight.t().clone()
        return hidden @ self.kept
""",
    "a frozen part that the state dict leaves out": """
    def make(self):
        self.fixed = nn.Linear(64, 64).requires_grad_(False)
        self.fixed.weight.data = torch.eye(64) * 2
        self._register_state_dict_hook(lambda m, s, p, l: [s.pop(k) for k in list(s) if "fixed" in k] and None)
    def middle(self, hidden):
        return self.fixed(hidden)
""",
    "a function of the module": """
    def make(self):
        self.back = lambda hidden: F.linear(hidden, self.first.weight.t())
    def middle(self, hidden):
        return self.back(hidden)
""",
    "a copy made when loaded": """
    def make(self):
        self.register_buffer("cached", self.first.weight.detach().t().clone(), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, keys: module.renew())
    def renew(self):
        self.cached = self.first.weight.detach().t().clone()
    def middle(self, hidden):
        return hidden @ self.cached
""",
    "merged in eval mode": """
    def make(self):
        self.update, self.is_merged = nn.Parameter(torch.randn(64, 64) / 8), False
    def train(self, mode=True):
        if mode == self.is_merged:
            self.first.weight.data += -self.update.data if mode else self.update.data
            self.is_merged = not mode
        return super().train(mode)
""",
}


@pytest.fixture
def world(tmp_path, make_spec, request):
    def make(net):
        name = f"net_{abs(hash(net))}"
        (tmp_path / f"{name}.py").write_text(f"{TOP}\nclass Net(Base):\n    {NETS[net].strip()}\n")
        experts = [tmp_path / f"e{k}.safetensors" for k in range(2)]
        names = {"first.weight": (64, 64), "first.bias": (64,), "last.weight": (4, 64), "last.bias": (4,)}
        names |= {"update": (64, 64)} if "merged" in net else {}
        names |= {"again.weight": (64, 64), "again.bias": (64,)} if "global" in net else {}
        for k, path in enumerate(experts):
            draws = torch.Generator().manual_seed(k)
            save_file({key: torch.randn(shape, generator=draws) / 8 for key, shape in names.items()}, path)
        return make_spec(model={"arch": f"python:{name}:Net"}), experts

    return make


@pytest.mark.parametrize("bank", ["device", "blocks", "streamed"])
def test_forwards_that_share_more_than_they_are_given_are_refused_where_they_take_turns(blend, world, bank):
    spec, experts = world("what another layer has left in a global variable")
    if bank == "device":
        assert sum(blend(experts, spec, "spsa", bank=bank)[0]["alpha"]) == pytest.approx(1)
        return
    with pytest.raises(SpecError, match="computes something else") as caught:
        blend(experts, spec, "spsa", bank=bank)
    assert "--bank device" in caught.value.hint


def test_streamed_experts_are_checked_too(blend, world):
    spec, experts = world("a function of the module")
    with pytest.raises(SpecError, match="computes something else|on device meta"):
        blend(experts, spec, "spsa", bank="streamed")


@pytest.mark.parametrize("net", ["plain", "random", "in bfloat16"])
def test_random_models_and_other_dtypes_are_no_faults(blend, world, net):
    spec, experts = world(net)
    result, _ = blend(experts, spec, "spsa")
    assert sum(result["alpha"]) == pytest.approx(1)


@pytest.mark.parametrize("method", ["spsa", "fullgrad", "proxy"])
@pytest.mark.parametrize("net", [net for net in NETS if net not in ("random", "in bfloat16")])
def test_a_search_runs_the_model_that_is_written_or_none(blend, world, net, method):
    spec, experts = world(net)
    if net.startswith(("plain", "a frozen part", "the first weight again", "what another layer")):
        result, _ = blend(experts, spec, method)
        assert sum(result["alpha"]) == pytest.approx(1)
        return
    with pytest.raises(SpecError, match="computes something else|on device meta") as caught:
        blend(experts, spec, method)
    assert "let forward take them from there alone" in caught.value.hint


@pytest.mark.parametrize(
    ("method", "settings"),
    [("fullgrad", {}), *(("spsa", {"bank": bank}) for bank in ("device", "blocks", "streamed"))],
)
def test_what_a_module_keeps_until_train_is_forgotten_with_each_blend(blend, world, method, settings):
    again, kept = (world(net) for net in ("the first weight again", "the first weight again, kept until train()"))
    wanted, _ = blend(again[1], again[0], method, name="again", **settings)
    found, _ = blend(kept[1], kept[0], method, name="kept", **settings)
    assert found["alpha"] == wanted["alpha"] and found["loss"] == wanted["loss"]
