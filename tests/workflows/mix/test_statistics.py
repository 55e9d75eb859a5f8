"""BatchNorm by evidence, blocks and folds, from the experts' files to the prior's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from glue_cli.blend.tensor_rules import TensorRules
from glue_cli.data.target import Target
from glue_cli.foundation.errors import SpecError
from glue_cli.plans.evaluate import plan_evaluate
from glue_cli.plans.mix import plan_mix
from glue_cli.plans.mix_records import GIVEN, Coefficients, Writing
from glue_cli.plans.outputs import Outputs
from glue_cli.results.record import as_object
from glue_cli.running.device import Compute
from glue_cli.running.refreshing import refresh_from_few
from glue_cli.spec.schema import Spec
from glue_cli.workflows.evaluate import evaluate
from glue_cli.workflows.mix.mix import mix

N_CLASSES, WIDTH = 4, 12
NET = """
from torch import nn
def make():
    def block(n): return nn.Sequential(nn.Linear(n, 12), nn.BatchNorm1d(12), nn.ReLU())
    return nn.Sequential(nn.Sequential(*(block(n) for n in (8, 12, 12))), nn.Linear(12, 4))
"""


def net():
    made = {}
    exec(NET, made)
    return made["make"]()


def domain(k, n, seed):
    """Return inputs of classes that lie apart, as the domain k sees them: shifted and scaled, by much."""
    random = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(N_CLASSES, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % N_CLASSES
    inputs = centres[labels] + torch.randn(n, 8, generator=random)
    change = torch.Generator().manual_seed(1000 + k)
    scale, shift = torch.rand(8, generator=change) + 0.5, 1.5 * torch.randn(8, generator=change)
    return inputs * scale + shift, labels


def train(k):
    torch.manual_seed(0)
    model, (inputs, labels) = net().train(), domain(k, 256, k)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Four experts of domains of their own, and a target that is like none of them."""
    folder = tmp_path_factory.mktemp("family")
    (folder / "domains_net.py").write_text(NET)
    for k in range(4):
        save_file(train(k), folder / f"e{k}.safetensors")
    for split, n in (("train", 400), ("test", 2000)):
        inputs, labels = domain(9, n, 500 + n)
        save_file({"inputs": inputs, "labels": labels}, folder / f"{split}.safetensors")
    return folder


@pytest.fixture
def mixed(family, run, tmp_path):
    """Mix the family's experts; return the result and the file."""

    def mixed(method="spsa", *, train=40, val=10, alpha=None, dtype=None, name="prior", rules=None, **mix_section):
        data = {"format": "safetensors", "root": ".", "target": {"train": train, "val": val}}
        spec = Spec.model_validate(
            {"model": {"arch": "python:domains_net:make"}, "data": data, "mix": mix_section, "precision": "fp32"}
        ).located_in(family)
        mixed.spec = spec
        plan = plan_mix(
            sorted(family.glob("e*.safetensors")),
            Outputs(tmp_path / f"{name}.safetensors"),
            Coefficients(method, alpha),
            rules=TensorRules(**(rules or {})),
            writing=Writing(memory_bytes=1 << 20, hashing=False, dtype=dtype),
            spec=spec,
        )
        return as_object(mix(plan, run))

    return mixed


@pytest.fixture
def loss_of(mixed, run):
    def loss_of(path, split="val"):
        plan = plan_evaluate(mixed.spec, [Path(path)], split, {}, Outputs(None))
        return evaluate(plan, run).results[0].figures["loss"]

    return loss_of


@pytest.mark.parametrize("method", ["spsa", "fullgrad", "greedy", "cmaes"])
@pytest.mark.parametrize("labels", [{"train": 20, "val": 8}, {"train": 300, "val": 50}])
def test_the_loss_is_that_of_the_file(mixed, loss_of, method, labels):
    result = mixed(method, **labels, steps=12)
    assert result["statistics"] in ("averaged", "refreshed")
    assert result["loss"]["val"] == pytest.approx(loss_of(result["output"]), rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("batchnorm", ["auto", "average", "refresh"])
def test_the_loss_is_that_of_the_file_in_its_own_dtype(mixed, loss_of, dtype, batchnorm):
    result = mixed(dtype=dtype, rules={"batchnorm": batchnorm}, steps=12)
    assert result["loss"]["val"] == pytest.approx(loss_of(result["output"]), rel=1e-5)
    tensors = load_file(result["output"])
    assert {str(t.dtype) for t in tensors.values() if t.is_floating_point()} == {f"torch.{dtype}"}


@pytest.mark.parametrize("train", [20, 100])
def test_the_default_is_not_behind_any_plain_blend(mixed, loss_of, family, train):
    """On data that nobody has seen; by more than the noise of so few labels."""
    found = loss_of(mixed(train=train, val=train // 4)["output"], "test")
    rivals = {f"expert {k}": family / f"e{k}.safetensors" for k in range(4)}
    for policy in ("average", "refresh"):
        rules = {"batchnorm": policy}
        rivals[f"uniform, {policy}"] = mixed("uniform", train=train, name=policy, rules=rules)["output"]
        for k in range(4):
            alpha = tuple(float(j == k) for j in range(4))
            name = f"expert {k}, {policy}"
            rivals[name] = mixed(GIVEN, train=train, alpha=alpha, name=name, rules=rules)["output"]
    losses = {name: loss_of(path, "test") for name, path in rivals.items()}
    assert found < min(losses.values()) + (0.1 if train == 20 else 0.05), losses


def test_refreshed_statistics_are_those_of_the_targets_data(mixed):
    result = mixed(train=300, val=50)
    assert result["statistics"] == "refreshed" == mixed("proxy", train=300, val=50, name="proxy")["statistics"]
    assert result["settings"]["batchnorm"] == "refresh"
    assert any(name.endswith(", refreshed") for name in result["search"]["starts"])
    mean = load_file(result["output"])["0.0.1.running_mean"]
    averaged = sum(
        a * load_file(expert["path"])["0.0.1.running_mean"]
        for a, expert in zip(result["alpha"], result["experts"], strict=True)
    )
    assert (mean - averaged).abs().max() > 0.1


def test_proxy_writes_the_statistics_that_it_chose_by(mixed, loss_of, run):
    """Those of 20 examples are pulled towards the averaged ones; from all of train, as they are, they differ."""
    result = mixed("proxy", train=20, val=200)
    assert result["statistics"] == "refreshed"
    assert result["loss"] == {"val": pytest.approx(loss_of(result["output"], "val"), rel=1e-4), "val_uniform": None}
    written = load_file(result["output"])
    model = net().eval()
    experts = [(a, load_file(e["path"])) for a, e in zip(result["alpha"], result["experts"], strict=True)]
    model.load_state_dict({name: sum(a * expert[name].double() for a, expert in experts) for name in written})
    train = Target(mixed.spec, run)["train"].on(Compute(torch.device("cpu"), "fp32"))
    refresh_from_few(model, train.in_random_order(64, 0), lambda model, batch: model(batch[0]))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["spsa", "greedy", "proxy"])
def test_a_policy_that_is_given_is_kept(mixed, method):
    result = mixed(method, rules={"batchnorm": "average"})
    assert "statistics" not in result and "batchnorm" not in result["settings"]
    mean = load_file(result["output"])["0.0.1.running_mean"]
    if not result.get("groups"):
        torch.testing.assert_close(mean, averaged_mean(result), rtol=1e-4, atol=1e-5)


def averaged_mean(result):
    means = [load_file(expert["path"])["0.0.1.running_mean"] for expert in result["experts"]]
    return sum(a * mean for a, mean in zip(result["alpha"], means, strict=True))


@pytest.mark.parametrize("keys", [{"preset": "paper", "steps": 5}, {"search": "plain", "steps": 5}])
def test_a_plain_search_keeps_the_experts_statistics(mixed, keys):
    result = mixed(**keys)
    assert "statistics" not in result and "groups" not in result
    torch.testing.assert_close(
        load_file(result["output"])["0.0.1.running_mean"], averaged_mean(result), rtol=1e-4, atol=1e-5
    )


def test_methods_that_look_at_no_data_refresh_only_when_asked(mixed):
    result = mixed("uniform")
    assert result["cost"]["forwards"] == 0
    torch.testing.assert_close(
        load_file(result["output"])["0.0.1.running_mean"], averaged_mean(result), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("policy", ["auto", "average", "from:e1"])
def test_a_search_by_statistics_that_are_not_written_is_refused(mixed, policy):
    with pytest.raises(SpecError, match="mix.bn_statistics: batch searches with") as caught:
        mixed(bn_statistics="batch", rules={"batchnorm": policy})
    assert "--batchnorm refresh" in caught.value.hint


def test_minibatches_too_small_for_statistics_are_left_alone(mixed):
    result = mixed(batch_size=4, steps=6)
    assert "statistics" not in result and not any("refreshed" in name for name in result["search"]["starts"])


@pytest.mark.parametrize(("groups", "names"), [("auto", ["0.0", "0.1", "0.2", "1"]), ("none", None), ({}, None)])
def test_the_blocks_of_the_model_are_its_groups(mixed, groups, names):
    result = mixed(train=300, val=50, groups=groups)
    assert ("groups" in [stage["stage"] for stage in result["search"]["stages"]]) == (names is not None)
    if names and "groups" in result:
        assert list(result["groups"]) == names


def test_few_labels_all_search_and_all_judge(mixed):
    few, many = mixed(train=40, val=10), mixed(train=300, val=50, name="many")
    assert few["search"]["guard"]["terms"] == 50 and many["search"]["guard"]["terms"] == 350
    assert few["search"]["guard"]["standard_error"] > 0


def test_a_net_without_batchnorm_has_no_kinds(family, mixed):
    assert not any(isinstance(module, nn.LayerNorm) for module in net().modules())
    result = mixed(rules={"batchnorm": "from:e0"})
    assert "statistics" not in result
    assert torch.equal(
        load_file(result["output"])["0.0.1.running_mean"], load_file(family / "e0.safetensors")["0.0.1.running_mean"]
    )
