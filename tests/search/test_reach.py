"""bfloat16 shows how the outputs change between experts at every distance, and a search finds float32's alpha."""

import copy
from pathlib import Path

import pytest
import small_experts
import torch
from safetensors.torch import load_file
from small_experts import of_loss
from small_nets import Recurrent, batch_of, blended, conv_net, in_turn, normed, wide_loss
from torch import nn
from torch.nn import functional as F

from glue_cli.foundation.errors import PrecisionError
from glue_cli.methods.spsa import spsa
from glue_cli.running.device import Compute
from glue_cli.running.losses import example_losses
from glue_cli.search.bank.load import bank_of_tensors
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.objective import BlendObjective, Minibatches
from glue_cli.search.points import towards_experts
from glue_cli.search.reach import Reach, measure_reach
from glue_cli.spec.schema import MixSpec

CPU = torch.device("cpu")
DISTANCES = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]
DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "train.safetensors"


def noisy(state, distance, seed):
    """Return an expert as far from a state as `distance`, as a share of each number's own size."""
    random = torch.Generator().manual_seed(seed)
    floating = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    return {n: tensor * (1 + distance * torch.randn(tensor.shape, generator=random)) for n, tensor in floating.items()}


class Embedded(nn.Module):
    """Tokens through an embedding, a convolution and two kinds of norms, with two layers tied to each other."""

    def __init__(self):
        super().__init__()
        self.tokens, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.conv, self.group_norm = nn.Conv1d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head.weight = self.body.weight

    def forward(self, images):
        tokens = images.flatten(1).mul(3).long().clamp(-4, 4) + 4
        features = self.conv(self.norm(self.tokens(tokens)).transpose(1, 2))
        return self.head(self.body(F.gelu(self.group_norm(features)).mean(2)).relu())[:, :3]


def blends_of(model, experts, **options):
    bank = bank_of_tensors((expert.items() for expert in experts), n_experts=len(experts), device=CPU)
    return ResidentBlends(copy.deepcopy(model), bank, Compute(CPU), seed=0, **options)


def objective_of_blends(blends, batch, precision, reach=None):
    return BlendObjective(
        blends.with_precision(precision),
        of_loss("cross_entropy"),
        Minibatches(lambda step: batch, lambda: [batch], 1),
        seed=0,
        reach=reach,
    )


def trained(model, data, n_steps, seed=0):
    """Train on random minibatches of the data, so that the outputs are spread."""
    optimizer, random = torch.optim.Adam(model.parameters(), 0.003), torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        inputs, targets = (part[torch.randperm(len(data[1]), generator=random)[:32]] for part in data)
        example_losses("cross_entropy", model.train()(inputs), targets).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.parametrize("make", [conv_net, Recurrent, normed, Embedded])
def test_slopes_and_curvatures_are_those_of_float32_at_every_distance(make):
    torch.manual_seed(0)
    batch = tuple(torch.cat(parts) for parts in zip(*map(batch_of, range(6)), strict=True))
    state = trained(make(), batch, 100).state_dict()
    unseen = batch[0], batch[1].roll(1)  # labels that the model has not learned, so that there are slopes
    alpha = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    for distance in DISTANCES:
        blends = blends_of(make(), [noisy(state, distance, seed) for seed in range(3)])
        try:
            reach = measure_reach(blends, unseen)
        except PrecisionError as error:
            pytest.skip(f"{error}")  # an LSTM on a CPU without AVX-512
        assert reach.is_fine
        # A step that float32 resolves, and that is so short that the outputs change in proportion.
        exact = objective_of_blends(blends, unseen, "fp32").quadratic(alpha, torch.arange(3), 1e-3 / distance, 0)
        found, fixed = (
            objective_of_blends(blends, unseen, "bf16", own).quadratic(alpha, torch.arange(3), 0.01, 0)
            for own in (reach, None)
        )
        scale = exact.curvature.diagonal(dim1=1, dim2=2).sum()
        assert (found.gradient - exact.gradient).norm() < 0.1 * scale.sqrt()
        assert (found.curvature - exact.curvature).norm() < 0.4 * scale
        assert (fixed.curvature - exact.curvature).norm() > 0.5 * scale


class Net(nn.Sequential):
    def __init__(self):
        hidden = (nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU())
        super().__init__(nn.Flatten(), *hidden, nn.Linear(48, 10))


@pytest.fixture(scope="module")
def digits():
    """Return a base, how experts for some of the digits each differ from it, and digits most of which one knows."""
    stored = load_file(DIGITS)
    images, labels = stored["images"].float() / 8 - 1, stored["labels"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = trained(Net(), (images[:400], labels[:400]), 60)
    floating = {name: tensor for name, tensor in base.state_dict().items() if tensor.is_floating_point()}
    differences = []
    for k in range(3):
        own = torch.isin(labels[:800], torch.arange(3 * k, 3 * k + 4)).nonzero()[:, 0]
        expert = trained(copy.deepcopy(base), (images[own], labels[own]), 30, seed=k).state_dict()
        differences.append({name: expert[name] - tensor for name, tensor in floating.items()})
    chosen = torch.isin(labels, torch.arange(3, 7)) & (torch.arange(len(labels)) >= 800)
    chosen[800:1000] = True
    return base, differences, (images[chosen], labels[chosen])


def length(state):
    return sum(tensor.square().sum() for name, tensor in state.items() if name.endswith(("weight", "bias"))).sqrt()


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("settings", [{"budget": "40"}, {"preset": "paper", "steps": 30, "lr": 0.1}])
def test_alpha_and_loss_are_those_of_float32_at_every_distance(digits, settings, distance):
    base, differences, target = digits
    scale = distance * length(base.state_dict()) / length(differences[0])
    experts = [{name: base.state_dict()[name] + scale * own[name] for name in own} for own in differences]
    blends = blends_of(base, experts)
    reach = measure_reach(blends, target)
    assert reach.is_fine and reach.is_within == (distance >= 1e-2)
    objectives = [objective_of_blends(blends, target, *way) for way in (("fp32",), ("bf16", reach))]
    chosen = MixSpec.model_validate({"batch_size": len(target[1]), **settings})
    exact, found = (spsa(objective, chosen, seed=0).alpha for objective in objectives)
    assert exact.max() > 0.5  # far from the uniform blend
    assert (exact - found).abs().sum() / 2 < 0.15
    uniform = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    start, best, reached = (wide_loss(base, blended(experts, alpha), target) for alpha in (uniform, exact, found))
    assert start - reached > 0.85 * (start - best) > 0


# ---- the reach itself, on outputs that are linear in alpha


class Lines:
    """Blends whose outputs are `at` + `ways`, [2, n, C] and [K, n, C], times alpha; in bfloat16 off by `off_by`.

    Attributes:
        seen: all alphas that outputs were asked for.
    """

    n_groups, is_linear, is_resident = 1, True, True

    def __init__(self, ways, off_by=0.01, precision="fp32", seen=None):
        self.ways, self.off_by, self.precision, self.seen = ways, off_by, precision, [] if seen is None else seen
        self.n_experts = len(ways)

    def with_precision(self, precision):
        other = copy.copy(self)
        other.precision = precision
        return other

    def outputs(self, alphas, batches, step):
        for alpha in alphas:
            self.seen.append(alpha)
            exact = CHECKED + torch.einsum("k,knc->nc", alpha[0], self.ways)
            yield exact + (self.off_by * CHECKED if self.precision == "bf16" else 0), None

    def towards(self, alpha, coordinates, radius, batch, step, *, is_tied):
        assert is_tied
        points = torch.cat([alpha[None], towards_experts(alpha, coordinates, radius, is_tied=True)])
        return (outputs for outputs, _ in self.outputs(points, [batch], step))


CHECKED = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)  # its size is 1
EQUAL = CHECKED.expand(3, 2, 2)


def test_each_expert_is_approached_until_the_change_is_ten_times_the_rounding():
    sizes = torch.tensor([3.0, 0.0, 0.003])
    reach = measure_reach(Lines(sizes[:, None, None] * EQUAL), None)
    changes = (reach.radii * (sizes - sizes.mean())).abs()
    assert ((changes > 0.04) & (changes < 0.21)).all()  # 10 times 0.01, within a factor of 2 or so
    assert reach.rounding == pytest.approx(0.01 / (1 + sizes.mean().item()), rel=1e-6)
    assert reach.is_fine and reach.is_within
    near = measure_reach(Lines(1e-3 * sizes[:, None, None] * EQUAL), None)
    torch.testing.assert_close(near.radii, 1000 * reach.radii, rtol=0.5, atol=0)
    assert near.is_fine and not near.is_within


def test_streamed_experts_have_the_same_reach():
    """They are read once for all moves; of those in memory, one blend is made at a time."""
    in_memory, streamed = (Lines(torch.tensor([3.0, 0.0, 0.003])[:, None, None] * EQUAL) for _ in range(2))
    streamed.is_resident = False
    torch.testing.assert_close(measure_reach(streamed, None).radii, measure_reach(in_memory, None).radii)


def test_what_all_outputs_of_an_example_have_in_common_does_not_count():
    common = torch.tensor([5.0, 1.0, 0.0])[:, None, None].expand(3, 2, 2)
    own = torch.tensor([3.0, 0.0, 0.003])[:, None, None] * EQUAL
    with_common, without = (measure_reach(Lines(ways), None) for ways in (own + common, own))
    torch.testing.assert_close(with_common.radii, without.radii)


def test_experts_that_are_the_same_stay_where_they_are():
    reach = measure_reach(Lines(0 * EQUAL), None)
    assert reach.is_fine and (reach.radii <= 1).all()


def test_a_move_stops_before_the_outputs_are_not_finite():
    class Bounded(Lines):
        """Has no finite outputs beyond a share of 3, as where a variance of BatchNorm would be below 0."""

        def outputs(self, alphas, batches, step):
            for exact, targets in super().outputs(alphas, batches, step):
                yield exact if self.seen[-1].max() < 3 else exact * torch.nan, targets

    reach = measure_reach(Bounded(torch.tensor([0.01, 0.0, -0.01])[:, None, None] * EQUAL), None)
    assert reach.radii[[0, 2]].min() > 0.5 and reach.radii.max() < 3


def test_blends_that_are_not_linear_stay_between_the_experts():
    blends = Lines(torch.tensor([0.01, 0.0, -0.01])[:, None, None] * EQUAL)
    blends.is_linear = False
    reach = measure_reach(blends, None)
    assert reach.is_short and not reach.is_fine
    assert torch.stack(blends.seen).min() >= 0


def test_rounding_that_is_large_beside_the_outputs_is_not_fine():
    assert not measure_reach(Lines(EQUAL, off_by=0.2), None).is_fine
    assert not measure_reach(Lines(torch.nan * EQUAL), None).is_fine


def test_groups_move_farther_alone_than_together():
    reach = Reach(torch.tensor([0.5, 2.0, 0.01], dtype=torch.float64), 0.0, is_short=False)
    assert reach.towards(torch.arange(3), 0.03, 4, is_tied=True).tolist() == [0.5, 2.0, 0.03]
    assert reach.towards(torch.tensor([1, 2, 3, 4]), 0.03, 4, is_tied=False).tolist() == [4.0, 0.03, 1.0, 4.0]


@pytest.mark.parametrize(("move", "wanted"), [(0.02, 50), (0.5, 2), (5.0, 1)])
def test_pairs_are_stretched_up_to_the_reach(move, wanted):
    reach = Reach(torch.ones(2, dtype=torch.float64), 0.0, is_short=False)
    middle, half = torch.tensor([[0.5, 0.5]]), torch.tensor([[move, 0.0]])
    assert reach.stretch(torch.stack([middle + half, middle - half])[:, None]) == pytest.approx(wanted)


def test_differences_of_pairs_are_scaled_back():
    torch.manual_seed(0)
    state = normed().state_dict()
    blends = blends_of(normed(), [noisy(state, 1e-2, seed) for seed in range(3)])
    alpha, step = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.01, -0.02, 0.01])
    pairs = torch.stack([alpha + step, alpha - step]).double()[:, None]
    plain = objective_of_blends(blends, batch_of(0), "fp32").pair_losses(pairs, 0)
    objective = objective_of_blends(
        blends, batch_of(0), "fp32", Reach(torch.full((3,), 2.0).double(), 0.0, is_short=False)
    )
    found = objective.pair_losses(pairs, 0)
    assert found[0] - found[1] == pytest.approx((plain[0] - plain[1]).item(), rel=0.02)
    assert found.mean() == pytest.approx(plain.mean().item(), rel=1e-4)
    assert objective.cost.forwards == 2


def test_whole_blends_are_compared_in_float32_where_bfloat16_does_not_tell_the_experts_apart():
    torch.manual_seed(0)
    state = normed().state_dict()
    blends = blends_of(normed(), [noisy(state, 1e-4, seed) for seed in range(3)])
    alphas = torch.eye(3, dtype=torch.float64)[:, None]
    reach = measure_reach(blends, batch_of(0))
    exact = objective_of_blends(blends, batch_of(0), "fp32").probe_losses(alphas, 0)
    assert torch.equal(objective_of_blends(blends, batch_of(0), "bf16", reach).probe_losses(alphas, 0), exact)
    assert not torch.equal(objective_of_blends(blends, batch_of(0), "bf16").probe_losses(alphas, 0), exact)
    objective = objective_of_blends(blends, batch_of(0), "bf16", reach)
    assert objective.validation_loss(alphas[0]) == pytest.approx(exact[0].item(), rel=1e-6)


def test_groups_of_tensors_are_moved_far_enough_too(objective_of, monkeypatch):
    state = trained(conv_net(), batch_of(0), 60).state_dict()
    near = [noisy(state, 1e-3, seed) | {n: t for n, t in state.items() if "tracked" in n} for seed in range(3)]
    monkeypatch.setattr(small_experts, "make_experts", lambda make: (make(), near))
    blends = objective_of(conv_net, recipe=in_turn(conv_net, 2))[0]._blends
    reach, places = measure_reach(blends, batch_of(1)), torch.arange(6)
    alpha = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64)
    exact = objective_of_blends(blends, batch_of(1), "fp32").quadratic(alpha, places, 1.0, 0)
    found = objective_of_blends(blends, batch_of(1), "bf16", reach).quadratic(alpha, places, 0.03, 0)
    scale = exact.curvature.diagonal(dim1=1, dim2=2).sum()
    assert (found.gradient - exact.gradient).norm() < 0.1 * scale.sqrt()
    assert (found.curvature - exact.curvature).norm() < 0.4 * scale
