"""Mixes of adapters from their factors: as dense updates give them, and as PEFT computes each adapter."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from glue_cli.blend.adapters.adapted_base import fit
from glue_cli.blend.adapters.adapter import read_adapter
from glue_cli.blend.adapters.mixing import expert_tensors, mixed_tensor
from glue_cli.checkpoints.naming import Naming, Source
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError
from glue_cli.running.device import Compute
from glue_cli.search.adapters import adapted_model, narrow
from glue_cli.search.adapters.fit import find_obstacle, fit_adapters, padded_otherwise
from glue_cli.search.bank.load import bank_of_tensors
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.pieces import Piece

CPU = Compute(torch.device("cpu"))
ALPHAS = torch.tensor([[[0.2, 0.3, 0.5]], [[0.0, 1.0, 0.0]], [[0.6, 0.4, 0.0]]], dtype=torch.float64)
KINDS = {
    "linear": {"target_modules": ["first", "last"]},
    "some modules only": {"target_modules": ["first"]},
    "patterns": {
        "target_modules": ["first", "last", "head"],
        "rank_pattern": {"last": 3},
        "alpha_pattern": {"first": 7},
    },
    "rslora": {"target_modules": ["first", "last"], "use_rslora": True},
    "Conv1D": {"target_modules": ["turned"], "fan_in_fan_out": True},
    "convolution": {"target_modules": ["convolved"]},
    "embedding": {"target_modules": ["embedded"]},
    "modules_to_save": {"target_modules": ["first", "embedded"], "modules_to_save": ["head", "norm"]},
    "bias": {"target_modules": ["first", "last"], "bias": "all"},
}


@pytest.fixture(scope="module")
def peft(torchvision):
    return pytest.importorskip("peft")


class Net(nn.Module):
    """A layer of every kind, in eval mode deterministic, and not linear between them."""

    def __init__(self, turned):
        super().__init__()
        self.embedded = nn.Embedding(9, 6)
        self.first, self.last = nn.Linear(6, 6, bias=False), nn.Linear(6, 7)
        self.turned = turned(8, 7)
        self.convolved = nn.Conv1d(8, 5, 3, stride=2, padding=1)
        self.norm, self.head = nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, inputs):
        hidden = torch.tanh(self.first(self.embedded(inputs)))
        hidden = torch.tanh(self.turned(torch.tanh(self.last(hidden))))
        hidden = self.convolved(hidden.transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(torch.tanh(hidden).mean(1)))


@pytest.fixture(scope="module")
def net(torchvision):
    conv1d = pytest.importorskip("transformers").pytorch_utils.Conv1D
    torch.manual_seed(0)
    return Net(conv1d).eval()


@pytest.fixture
def make(net, peft, tmp_path):
    """Save a base and three adapters of different ranks; return them fitted, and each as PEFT's model."""

    def make(net=net, dtype=torch.float32, **config):
        base = {name: tensor.to(dtype) for name, tensor in net.state_dict().items()}
        save_file(base, tmp_path / "base.safetensors")
        models = []
        for k in range(3):
            own = copy.deepcopy(net)
            own.load_state_dict({name: tensor.float() for name, tensor in base.items()})
            model = peft.get_peft_model(own, peft.LoraConfig(**{"r": k + 1, "lora_alpha": 2, **config}))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    nn.init.normal_(parameter, std=0.4)
            model.save_pretrained(tmp_path / str(k))
            models.append(model.eval())
        adapters = [read_adapter(tmp_path / str(k)) for k in range(3)]
        adapted = fit(read_checkpoint(tmp_path / "base.safetensors"), adapters)
        return adapted, Naming({name: Source((name,)) for name in base}, ()), models

    return make


@pytest.fixture
def batches():
    draws = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 9, (n, 8), generator=draws), torch.randint(0, 3, (n,), generator=draws)) for n in (4, 2)]


def dense(net, adapted, naming):
    model = copy.deepcopy(net)
    model.load_state_dict({name: mixed_tensor(adapted, [1, 0, 0], name).float() for name in naming.sources})
    bank = bank_of_tensors((expert_tensors(adapted, k, naming) for k in range(3)), n_experts=3, device=CPU.device)
    return ResidentBlends(model, bank, CPU, seed=0)


def factored(net, adapted, naming):
    model = copy.deepcopy(net)
    assert find_obstacle(model, adapted, naming) is None
    return fit_adapters(model, adapted, naming, CPU, seed=0)


def outputs(blends, alphas, batches):
    return [found.clone() for found, _ in blends.outputs(alphas, batches, 0)]


def close(found, wanted, **tolerance):
    torch.testing.assert_close(found, wanted, **{"rtol": 1e-5, "atol": 1e-5, **tolerance})


@pytest.mark.parametrize("kind", KINDS)
def test_what_dense_updates_and_peft_give(net, make, batches, kind):
    adapted, naming, models = make(**KINDS[kind])
    ours, theirs = factored(net, adapted, naming), dense(net, adapted, naming)
    found = outputs(ours, ALPHAS, batches)
    close(found, outputs(theirs, ALPHAS, batches))
    assert (found[0] - found[2]).abs().max() > 1e-3  # alpha makes a difference
    with torch.no_grad():
        for k, model in enumerate(models):
            close(outputs(ours, torch.eye(3)[k][None, None], batches[:1])[0], model(batches[0][0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", ["circular", "reflect", "replicate"])
def test_convolutions_pad_an_update_as_they_pad_when_peft_has_merged_it(net, make, batches, padding, dtype):
    net = copy.deepcopy(net)
    net.convolved = nn.Conv1d(8, 5, 3, stride=2, padding=1, padding_mode=padding).requires_grad_(False)
    adapted, naming, models = make(net=net, dtype=dtype, target_modules=["convolved"])
    ours = factored(net, adapted, naming)
    close(outputs(ours, ALPHAS, batches), outputs(dense(net, adapted, naming), ALPHAS, batches))
    assert padded_otherwise(net, adapted, naming) == ["convolved"]
    with torch.no_grad():
        for k, model in enumerate(models):
            found = outputs(ours, torch.eye(3)[k][None, None], batches[:1])[0]
            assert (found - model(batches[0][0])).abs().max() > 1e-3  # PEFT pads with zeros as long as it is apart
            close(found, model.merge_and_unload()(batches[0][0]))


def test_a_convolution_that_pads_with_zeros_is_the_same_apart(net, make):
    adapted, naming, _ = make(**KINDS["convolution"])
    assert padded_otherwise(net, adapted, naming) == []


@pytest.mark.parametrize("kind", KINDS)
def test_towards_and_slopes_as_by_dense_updates(net, make, batches, kind):
    adapted, naming, _ = make(**KINDS[kind])
    both = factored(net, adapted, naming), dense(net, adapted, naming)
    coordinates, ways = torch.tensor([2, 0]), []
    for blends in both:
        ways.append([out.clone() for out in blends.towards(ALPHAS[0], coordinates, 0.25, batches[0], 3)])
    close(*ways)
    for piece in (
        Piece(slice(None), slice(0, 0)),
        Piece(slice(None), slice(1, 2)),
        Piece(slice(1, 3), slice(0, 1)),
    ):  # a rank's share
        shared = both[0].towards(ALPHAS[0], coordinates, 0.25, batches[0], 3, pieces=(piece,))
        close([out.clone() for out in shared], [way[piece.rows] for way in (ways[0][0], *ways[0][1:][piece.blends])])
    losses, slopes = zip(
        *(blends.gradient(ALPHAS[0], batches[0], 3, nn.functional.cross_entropy) for blends in both), strict=True
    )
    close(*losses)
    centred = [slope - (slope * ALPHAS[0]).sum() for slope in slopes]  # they are equal up to a constant
    close(*centred)
    assert slopes[0].shape == (1, 3) and slopes[0].dtype == torch.float64 and centred[0].abs().max() > 1e-4
    close(outputs(both[0], ALPHAS, batches), outputs(both[1], ALPHAS, batches))  # gradients leave nothing behind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("merges", [False, True])
def test_a_base_in_bfloat16(net, make, batches, monkeypatch, kind, merges):
    monkeypatch.setattr(narrow, "_PART_BYTES", 50)  # two rows or one
    adapted, naming, _ = make(dtype=torch.bfloat16, **KINDS[kind])
    ours, theirs = factored(net, adapted, naming), dense(net, adapted, naming)
    replaced = adapted.adapters[0].plain.entries
    kept = {name for name, parameter in ours.model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert kept == {*naming.sources}
    close(outputs(ours, ALPHAS, batches), outputs(theirs, ALPHAS, batches))
    dtypes = dict.fromkeys(naming.sources, torch.bfloat16) if merges else {}
    written = ours.as_written(dtypes), theirs.as_written(dtypes)
    for blend in written:
        blend.load(ALPHAS[0])
    found, wanted = ([out.clone() for out, _ in blend.outputs(batches)] for blend in written)
    # a sum in another order may round one weight of a merged model to the other bfloat16
    close(found, wanted, atol=2e-4 if merges else 1e-5)
    plain = outputs(ours, ALPHAS[:1], batches)
    differences = [(a - b).abs().max() for a, b in zip(found, plain, strict=True)]
    assert (max(differences) > 5e-6) == merges or replaced


def test_a_base_in_bfloat16_keeps_its_weights_for_slopes(net, make, batches):
    adapted, naming, _ = make(dtype=torch.bfloat16, **KINDS["modules_to_save"])
    both = factored(net, adapted, naming), dense(net, adapted, naming)
    found = [blends.gradient(ALPHAS[0], batches[0], 0, nn.functional.cross_entropy) for blends in both]
    centred = [slope - (slope * ALPHAS[0]).sum() for _, slope in found]
    close(*centred)


def test_half_precision_runs_on_the_weights_as_they_are(net, make, batches):
    adapted, naming, _ = make(dtype=torch.bfloat16, **KINDS["linear"])
    blends = factored(net, adapted, naming)
    exact, rough = outputs(blends, ALPHAS, batches), outputs(blends.with_precision("bf16"), ALPHAS, batches)
    rough = [out.float() for out in rough]
    close(rough, exact, rtol=0.1, atol=0.1)
    assert not torch.equal(rough[0], exact[0])
    close(outputs(blends, ALPHAS, batches), exact, rtol=0, atol=0)


def test_written_blends_and_others_do_not_disturb_each_other(net, make, batches):
    adapted, naming, _ = make(**KINDS["modules_to_save"])
    blends = factored(net, adapted, naming)
    written = blends.as_written({})
    written.load(ALPHAS[0])
    before = [out.clone() for out, _ in written.outputs(batches)]
    outputs(blends, ALPHAS[1:], batches)
    close([out for out, _ in written.outputs(batches)], before, rtol=0, atol=0)
    assert written.statistics() == {} and blends.with_statistics("refreshed") is blends


class Sneaky(Net):
    """Uses a weight without calling its module."""

    def forward(self, inputs):
        hidden = nn.functional.linear(self.embedded(inputs), self.first.weight)
        return self.head(self.norm(hidden.mean(1)[:, :5]))


def test_a_module_that_is_not_called_is_refused(net, make, batches):
    adapted, naming, _ = make(**KINDS["linear"])
    model = copy.deepcopy(net)
    model.__class__ = Sneaky
    with pytest.raises(CheckpointError, match="without calling their modules") as caught:
        outputs(fit_adapters(model, adapted, naming, CPU, seed=0), ALPHAS, batches)
    assert caught.value.items == ("first", "last") and "--bank dense" in caught.value.hint


class Custom(nn.Linear):
    pass


@pytest.mark.parametrize("what", ["subclass", "tied", "batchnorm", "made"])
def test_what_factors_cannot_do_is_told(net, make, what):
    adapted, naming, _ = make(**KINDS["linear"])
    model = copy.deepcopy(net)
    if what == "subclass":
        model.first.__class__ = Custom
    elif what == "tied":
        model.other = nn.Linear(6, 6, bias=False)
        model.other.weight = model.first.weight
    elif what == "batchnorm":
        model.other = nn.BatchNorm1d(3)
    else:
        naming = Naming({**naming.sources, "first.weight": Source(("first.weight",), lambda parts: parts[0])}, ())
    wanted = {"subclass": "is a Custom", "tied": "another module", "batchnorm": "BatchNorm", "made": "several tensors"}
    assert wanted[what] in (find_obstacle(model, adapted, naming) or "")


@pytest.mark.parametrize("is_cheaper", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_and_many_inputs_go_other_ways_to_the_same_outputs(net, make, batches, monkeypatch, dtype, is_cheaper):
    monkeypatch.setattr(adapted_model, "_is_merging_cheaper", lambda factors, inputs: is_cheaper)
    monkeypatch.setattr(narrow, "_PART_BYTES", 50)
    adapted, naming, _ = make(dtype=dtype, **KINDS["patterns"])
    close(
        outputs(factored(net, adapted, naming), ALPHAS, batches), outputs(dense(net, adapted, naming), ALPHAS, batches)
    )
