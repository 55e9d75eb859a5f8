import copy
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_experts import of_loss
from small_nets import (
    ALPHA,
    ALPHA_OF_TWO,
    ALPHAS,
    ALPHAS_OF_TWO,
    BOTH,
    Attentive,
    N,
    Noisy,
    Recurrent,
    Speaking,
    batch_of,
    blended,
    by_beta,
    conv_net,
    in_turn,
    make_experts,
    normed,
    slopes_by_beta,
    wide_loss,
    wide_outputs,
)
from torch import nn
from torch.nn import functional as F

from glue_cli.blend.recipe import Recipe
from glue_cli.running.device import Compute
from glue_cli.running.losses import IGNORED, example_losses
from glue_cli.search import points as points_module
from glue_cli.search.account import Cost
from glue_cli.search.blended import BatchNormMode
from glue_cli.search.objective import BlendObjective
from glue_cli.search.pieces import WHOLE

CPU = torch.device("cpu")


@pytest.mark.parametrize("make", [conv_net, Recurrent, Attentive, normed])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", ["device", "disk"])
def test_probes_are_losses_of_the_blended_model(objective_of, make, channels_last, kind):
    objective, model, experts = objective_of(make, compute=Compute(CPU, channels_last=channels_last), kind=kind)
    for m in (1, 3, 2):  # the copies grow, then serve again
        found = objective.probe_losses(ALPHAS[:m], step=4)
        wanted = [wide_loss(model, blended(experts, alpha), batch_of(4)) for alpha in ALPHAS[:m]]
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, torch.stack(wanted).detach(), rtol=1e-5, atol=1e-6)


def test_a_recurrent_layer_stays_where_its_blend_is(objective_of, monkeypatch):
    def move_away(layer):
        """As cuDNN does on a GPU, into memory of its own."""
        if torch.backends.cudnn.enabled:
            for weight in layer._flat_weights:
                weight.data = weight.data.clone()

    objective, model, experts = objective_of(Recurrent)
    monkeypatch.setattr(nn.LSTM, "flatten_parameters", move_away)
    for alphas in (ALPHAS, ALPHAS.flip(0)):
        wanted = [wide_loss(model, blended(experts, alpha), batch_of(4)).detach() for alpha in alphas]
        torch.testing.assert_close(objective.probe_losses(alphas, step=4), torch.stack(wanted), rtol=1e-5, atol=1e-6)
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("make", [conv_net, Recurrent, Attentive, normed])
def test_gradient_equals_finite_differences(objective_of, make, loss):
    objective, model, experts = objective_of(make, loss)
    for step in (1, 2):  # the second call must not add to the first one's
        found_loss, by_alpha = objective.gradient(ALPHA, step)

        def loss_at(alpha, step=step):
            return wide_loss(model, blended(experts, alpha), batch_of(step, loss), loss).detach()

        wanted = slopes_by_beta(loss_at, ALPHA)
        assert found_loss == pytest.approx(loss_at(ALPHA).item(), rel=1e-5)
        assert (ALPHA * by_alpha - wanted).norm() < 1e-4 * wanted.norm()
        assert abs((ALPHA * by_alpha).sum()) < 1e-5 * by_alpha.norm()  # the constant is the mean over alpha


@pytest.mark.parametrize("make", [conv_net, Attentive])
@pytest.mark.parametrize("kind", ["device", "disk"])
def test_groups_are_blended_and_differentiated_with_coefficients_of_their_own(objective_of, make, kind):
    recipe = in_turn(make, 2)
    objective, model, experts = objective_of(make, recipe=recipe, kind=kind, compute=Compute(CPU, channels_last=True))
    assert (objective.n_groups, objective.n_experts) == (2, 3)

    def loss_at(alpha):
        return wide_loss(model, blended(experts, alpha, recipe), batch_of(1)).detach()

    wanted_losses = torch.stack([loss_at(alpha) for alpha in ALPHAS_OF_TWO])
    assert wanted_losses.std() > 0.01 * wanted_losses.mean()  # the groups do matter
    torch.testing.assert_close(objective.probe_losses(ALPHAS_OF_TWO, 1), wanted_losses, rtol=1e-5, atol=1e-6)
    found_loss, by_alpha = objective.gradient(ALPHA_OF_TWO, 1)
    wanted = slopes_by_beta(loss_at, ALPHA_OF_TWO)
    assert found_loss == pytest.approx(wanted_losses[0].item(), rel=1e-5)
    assert by_alpha.shape == (2, 3) and by_alpha.dtype == torch.float64
    for group in (0, 1):
        assert (by_beta(ALPHA_OF_TWO, by_alpha) - wanted)[group].norm() < 1e-4 * wanted[group].norm()
    validation = [len(batch[1]) * wide_loss(model, blended(experts, ALPHA_OF_TWO, recipe), batch) for batch in BOTH]
    assert objective.validation_loss(ALPHA_OF_TWO) == pytest.approx(sum(validation).item() / 17, rel=1e-5)


@pytest.mark.parametrize("lacking", ["head.weight", "body.weight"])
@pytest.mark.parametrize("kind", ["device", "disk"])
def test_a_tied_parameter_saved_under_one_name_serves_both(objective_of, lacking, kind):
    objective, model, experts = objective_of(Attentive, lacking=[lacking], kind=kind)

    def loss_at(alpha):
        return wide_loss(model, blended(experts, alpha), batch_of(1)).detach()  # both names, with equal tensors

    torch.testing.assert_close(
        objective.probe_losses(ALPHAS, 1), torch.stack([loss_at(alpha) for alpha in ALPHAS]), rtol=1e-5, atol=1e-6
    )
    wanted = slopes_by_beta(loss_at, ALPHA)
    for _ in range(2):
        _, by_alpha = objective.gradient(ALPHA, 1)
        assert (ALPHA * by_alpha - wanted).norm() < 1e-4 * wanted.norm()


# ---- tensors that are made


HEAD = ("7.weight", "7.bias")


def mixed_head(experts, alpha):
    """Return a head that is no blend: products with functions of both groups' coefficients."""
    scale = alpha[0].square() + torch.sin(3 * alpha[-1])
    return {name: sum(s * expert[name].double() for s, expert in zip(scale, experts, strict=True)) for name in HEAD}


@pytest.mark.parametrize("n_groups", [1, 2])
def test_made_tensors_follow_alpha(objective_of, monkeypatch, n_groups):
    _, experts = make_experts(conv_net)
    groups = in_turn(conv_net, n_groups)
    recipe = Recipe(groups.groups, groups.group_of, made={name: tuple(experts[0][name].shape) for name in HEAD})
    make_tensors = partial(mixed_head, experts)
    objective, model, experts = objective_of(conv_net, recipe=recipe, make_tensors=make_tensors)

    def loss_at(alpha):
        theta = blended(experts, alpha, recipe) | mixed_head(experts, alpha)
        return wide_loss(model, theta, batch_of(1)).detach()

    alphas = ALPHAS_OF_TWO[:, :n_groups]
    wanted_losses = torch.stack([loss_at(alpha) for alpha in alphas])
    wanted = slopes_by_beta(loss_at, alphas[0])
    for _ in range(2):  # neither probes nor gradients leave anything behind for the next
        torch.testing.assert_close(objective.probe_losses(alphas, 1), wanted_losses, rtol=1e-5, atol=1e-6)
        loss, by_alpha = objective.gradient(alphas[0], 1)
        assert loss == pytest.approx(wanted_losses[0].item(), rel=1e-5)
        assert (by_beta(alphas[0], by_alpha) - wanted).norm() < 1e-4 * wanted.norm()
    frozen = mixed_head(experts, alphas[0])
    without = slopes_by_beta(
        lambda alpha: wide_loss(model, blended(experts, alpha, recipe) | frozen, batch_of(1)).detach(), alphas[0]
    )
    assert (wanted - without).norm() > 0.1 * wanted.norm()  # the head's own slope does matter
    for pass_bytes in (1 << 26, 0):
        monkeypatch.setattr(points_module, "_PASS_BYTES", pass_bytes)
        slopes = objective.quadratic(alphas[0], torch.arange(alphas[0].numel()), 1e-3, 1).gradient.view_as(wanted)
        centred = slopes - (alphas[0] * slopes).sum(1, keepdim=True)
        assert (alphas[0] * centred - wanted).norm() < 0.02 * wanted.norm()


# ---- BatchNorm


def test_statistics_of_the_batch_take_the_place_of_the_blended_ones(objective_of):
    objective, model, experts = objective_of(conv_net, batchnorm=BatchNormMode("batch"))
    plain, _, _ = objective_of(conv_net)

    def loss_at(alpha):
        return wide_loss(model, blended(experts, alpha), batch_of(1), by_batch=True).detach()

    wanted = torch.stack([loss_at(alpha) for alpha in ALPHAS])
    for _ in range(2):
        torch.testing.assert_close(objective.probe_losses(ALPHAS, 1), wanted, rtol=1e-5, atol=1e-6)
    assert (plain.probe_losses(ALPHAS, 1) - wanted).abs().min() > 1e-3
    loss, by_alpha = objective.gradient(ALPHA, 1)
    slopes = slopes_by_beta(loss_at, ALPHA)
    assert loss == pytest.approx(wanted[0].item(), rel=1e-5)
    assert (ALPHA * by_alpha - slopes).norm() < 1e-4 * slopes.norm()


def test_gradient_without_the_statistics_is_that_of_frozen_statistics(objective_of):
    objective, model, experts = objective_of(conv_net, batchnorm=BatchNormMode(is_differentiated=False))
    _, by_alpha = objective.gradient(ALPHA, 1)
    parameters = {name for name, _ in model.named_parameters()}
    frozen = {name: tensor for name, tensor in blended(experts, ALPHA).items() if name not in parameters}

    def loss_at(alpha, frozen):
        return wide_loss(model, blended(experts, alpha) | frozen, batch_of(1)).detach()

    wanted = slopes_by_beta(lambda alpha: loss_at(alpha, frozen), ALPHA)
    whole = slopes_by_beta(lambda alpha: loss_at(alpha, {}), ALPHA)
    assert (ALPHA * by_alpha - wanted).norm() < 1e-4 * wanted.norm()
    assert (wanted - whole).norm() > 0.1 * whole.norm()


def test_gradient_points_the_way_the_probes_go(objective_of):
    objective, _, _ = objective_of(conv_net)
    _, by_alpha = objective.gradient(ALPHA, 3)
    step = 2e-3 * torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    there, back = objective.probe_losses(torch.stack([ALPHA + step, ALPHA - step]), 3)
    assert ((there - back) / 2).item() == pytest.approx((by_alpha * step).sum().item(), rel=1e-2)


# ---- what two probes share


def test_probes_of_a_step_see_the_same_examples_and_draws(objective_of):
    objective, _, _ = objective_of(Noisy)
    before = torch.get_rng_state()
    first = objective.probe_losses(ALPHA.repeat(3, 1, 1), step=1)
    assert first[0] == first[1] == first[2] == objective.probe_losses(ALPHA[None], step=1)[0]
    assert torch.equal(torch.get_rng_state(), before)
    loss, _ = objective.gradient(ALPHA, 1)
    assert loss == pytest.approx(first[0].item(), rel=1e-5)


def test_steps_and_seeds_draw_anew(objective_of, monkeypatch):
    objective, _, _ = objective_of(Noisy)
    fixed = replace(objective._minibatches, at_step=lambda step: batch_of(0))
    monkeypatch.setattr(objective, "_minibatches", fixed)  # so that only the draws differ
    other, _, _ = objective_of(Noisy, seed=1)
    losses = {objective.probe_losses(ALPHA[None], step).item() for step in range(5)}
    assert len(losses) == 5 and other.probe_losses(ALPHA[None], 0).item() not in losses


@pytest.mark.parametrize("make", [conv_net, Noisy])
def test_validation_is_the_mean_over_all_examples(objective_of, make):
    objective, model, experts = objective_of(make)
    found = objective.validation_loss(ALPHA)
    objective.probe_losses(ALPHAS, 1)
    assert objective.validation_loss(ALPHA) == found
    if make is conv_net:
        sums = [len(batch[1]) * wide_loss(model, blended(experts, ALPHA), batch).item() for batch in BOTH]
        assert found == pytest.approx(sum(sums) / 17, rel=1e-5)


def test_validation_terms_are_the_losses_of_the_examples(objective_of):
    objective, model, experts = objective_of(conv_net)
    terms = objective.validation_terms(ALPHA)
    outputs = [wide_outputs(model, blended(experts, ALPHA), batch) for batch in BOTH]
    wanted = [F.cross_entropy(z, batch[1], reduction="none") for z, batch in zip(outputs, BOTH, strict=True)]
    torch.testing.assert_close(terms, torch.cat(wanted), rtol=1e-4, atol=1e-5)
    assert terms.mean().item() == objective.validation_loss(ALPHA)
    for n_batches, n_terms in [(1, N), (2, N + 5), (3, N + 5)]:
        assert torch.equal(objective.validation_terms(ALPHA, n_batches), terms[:n_terms])


def test_a_score_takes_the_place_of_the_loss(objective_of):
    objective, model, experts = objective_of(conv_net, terms=lambda z, y: (z.argmax(1) != y).float().sum()[None])
    assert not objective.is_smooth and objective_of(conv_net)[0].is_smooth

    def n_wrong(batch):
        z = wide_outputs(model, blended(experts, ALPHA), batch)
        return (z.argmax(1) != batch[1]).sum().item()

    assert objective.probe_losses(ALPHA[None], 1).tolist() == [n_wrong(batch_of(1))]
    assert objective.validation_terms(ALPHA).tolist() == [n_wrong(batch) for batch in BOTH]  # one term a batch
    assert objective.validation_terms(ALPHA).dtype == torch.float64
    assert objective.validation_loss(ALPHA) == sum(map(n_wrong, BOTH)) / 2


def test_of_a_score_the_value_is_its_own_and_the_slopes_are_the_loss_s(objective_of):
    coordinates = torch.arange(len(ALPHA.flatten()))
    by_loss = objective_of(conv_net)[0].quadratic(ALPHA, coordinates, 0.03, 1)
    scored, _, _ = objective_of(conv_net, terms=lambda z, y: (z.argmax(1) != y).float())
    found = scored.quadratic(ALPHA, coordinates, 0.03, 1)
    assert found.loss == scored.probe_losses(ALPHA[None], 1).item() != by_loss.loss
    assert torch.equal(found.gradient, by_loss.gradient) and torch.equal(found.curvature, by_loss.curvature)


class Watched(nn.Module):
    """Notes in which mode it is called."""

    modes = []

    def __init__(self):
        super().__init__()
        self.inner = conv_net()

    def forward(self, images):
        self.modes.append(any(module.training for module in self.modules()))
        return self.inner(images)


def test_models_are_in_eval_mode_and_nothing_is_changed(objective_of):
    objective, model, _ = objective_of(Watched)
    Watched.modes.clear()
    before = copy.deepcopy(model.state_dict())
    losses = objective.probe_losses(ALPHAS, 1)
    for _ in range(2):
        objective.gradient(ALPHA, 1)
        objective.validation_loss(ALPHA)
    assert torch.equal(objective.probe_losses(ALPHAS, 1), losses)
    assert len(Watched.modes) == 12 and not any(Watched.modes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_pass_is_charged(objective_of):
    objective, _, _ = objective_of(conv_net)
    assert objective.cost == Cost()
    objective.probe_losses(ALPHAS, 0)
    assert objective.cost == Cost(forwards=3, examples=3 * N)
    objective.gradient(ALPHA, 0)
    assert objective.cost == Cost(forwards=4, backwards=1, examples=4 * N)
    objective.validation_loss(ALPHA)
    assert objective.cost == Cost(forwards=6, validation_forwards=2, backwards=1, examples=5 * N + 5)
    objective.validation_terms(ALPHA, n_batches=1)
    assert objective.cost == Cost(forwards=7, validation_forwards=3, backwards=1, examples=6 * N + 5)
    objective.quadratic(ALPHA, torch.tensor([0, 2]), 0.1, 0)
    assert objective.cost == Cost(forwards=10, validation_forwards=3, backwards=1, examples=9 * N + 5)


def test_bfloat16_probes_are_near_the_wide_ones(objective_of):
    objective, model, experts = objective_of(conv_net, compute=Compute(CPU, "bf16", channels_last=True))
    wanted = wide_loss(model, blended(experts, ALPHA), batch_of(1)).item()
    assert objective.probe_losses(ALPHA[None], 1).item() == pytest.approx(wanted, rel=2e-2)
    loss, by_alpha = objective.gradient(ALPHA, 1)
    slopes = slopes_by_beta(lambda alpha: wide_loss(model, blended(experts, alpha), batch_of(1)).detach(), ALPHA)
    assert loss == pytest.approx(wanted, rel=2e-2) and (ALPHA * by_alpha - slopes).norm() < 0.2 * slopes.norm()


@pytest.mark.cuda
@pytest.mark.parametrize("make", [conv_net, Recurrent, Attentive])
def test_cuda_equals_the_cpu(objective_of, cuda, make):
    (here, _, _), (there, _, _) = (
        objective_of(make, compute=Compute(device, channels_last=True)) for device in (CPU, cuda)
    )
    torch.testing.assert_close(there.probe_losses(ALPHAS, 1), here.probe_losses(ALPHAS, 1), rtol=1e-3, atol=1e-4)
    (loss, by_alpha), (cuda_loss, cuda_by_alpha) = here.gradient(ALPHA, 1), there.gradient(ALPHA, 1)
    assert cuda_loss == pytest.approx(loss, rel=1e-3)
    assert cuda_by_alpha.device == CPU and (cuda_by_alpha - by_alpha).norm() < 1e-2 * by_alpha.norm()
    again = there.probe_losses(ALPHAS.flip(0), 1)  # in the same places
    torch.testing.assert_close(again.flip(0), here.probe_losses(ALPHAS, 1), rtol=1e-3, atol=1e-4)
    assert there.validation_loss(ALPHA) == pytest.approx(here.validation_loss(ALPHA), rel=1e-3)
    found, wanted = (objective.quadratic(ALPHA, torch.arange(3), 0.3, 1) for objective in (there, here))
    assert found.gradient.device == found.curvature.device == CPU
    assert (found.gradient - wanted.gradient).norm() < 1e-2 * wanted.gradient.norm()
    assert (found.curvature - wanted.curvature).norm() < 1e-2 * wanted.curvature.norm()


def test_the_terms_of_texts_are_their_sums_by_the_mean_length(objective_of, monkeypatch):
    draws = torch.Generator().manual_seed(0)
    inputs, tokens = batch_of(0)[0], torch.randint(0, 40, (N, 2), generator=draws)
    tokens[0] = IGNORED
    tokens[1, 0] = IGNORED
    objective, _, _ = objective_of(Speaking)
    texts = [(inputs, tokens), (inputs[:3], tokens[:3])]
    monkeypatch.setattr(objective, "_minibatches", replace(objective._minibatches, validation=lambda: texts))
    terms = objective.validation_terms(ALPHA)
    assert len(terms) == N + 3 and terms[0] == terms[N] == 0
    ((outputs, _),) = objective._blends.outputs(ALPHA[None], texts[:1], 0)
    losses = torch.cat([example_losses("cross_entropy", outputs[k], tokens[k]) for k in (slice(N), slice(3))])
    assert terms.mean().item() == pytest.approx(losses.mean().item(), rel=1e-5)
    last = example_losses("cross_entropy", outputs[-1:], tokens[-1:]).sum().item()
    assert terms[N - 1].item() == pytest.approx(last * len(terms) / len(losses), rel=1e-5)


def test_copies_share_what_no_blend_changes(objective_of):
    objective, model, _ = objective_of(normed)
    objective.probe_losses(ALPHAS, 0)
    blended_names = set(objective._blends._bank.spans)
    for row in range(3):
        copied = objective._blends._model(row)
        for name, tensor in copied.state_dict(keep_vars=True).items():
            own = model.state_dict(keep_vars=True)[name]
            assert (tensor is own) == (name not in blended_names)


# ---- who yields the outputs


class InFloat64:
    """Blends by plain torch, one at a time, with no bank, no copies and no random state."""

    n_groups, n_experts = 1, 3

    def __init__(self, model, experts):
        self._model, self._experts = model, experts

    def outputs(self, alphas, batches, step, *, pieces=WHOLE):
        for batch in batches:
            for alpha in alphas:
                yield wide_outputs(self._model, blended(self._experts, alpha), batch), batch[1]

    def towards(self, alpha, coordinates, radius, batch, step, *, is_tied=False, pieces=WHOLE):
        assert not is_tied
        ends = points_module.towards_experts(alpha, coordinates, radius)
        return (outputs for outputs, _ in self.outputs(torch.cat([alpha[None], ends]), [batch], step))

    def gradient(self, alpha, batch, step, mean_loss):
        def loss_at(alpha):
            return mean_loss(wide_outputs(self._model, blended(self._experts, alpha), batch), batch[1])

        return loss_at(alpha).item(), slopes_by_beta(loss_at, alpha) / alpha


def test_an_objective_takes_the_outputs_from_whoever_yields_them(objective_of):
    resident, model, experts = objective_of(conv_net)
    other = BlendObjective(InFloat64(model, experts), of_loss("cross_entropy"), resident._minibatches, seed=0)
    torch.testing.assert_close(other.probe_losses(ALPHAS, 1), resident.probe_losses(ALPHAS, 1), rtol=1e-5, atol=1e-6)
    terms = resident.validation_terms(ALPHA)
    torch.testing.assert_close(other.validation_terms(ALPHA), terms, rtol=1e-4, atol=1e-5)
    (loss, by_alpha), (wanted_loss, wanted) = other.gradient(ALPHA, 1), resident.gradient(ALPHA, 1)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert (by_beta(ALPHA, by_alpha) - by_beta(ALPHA, wanted)).norm() < 1e-3 * wanted.norm()
    found, quadratic = (objective.quadratic(ALPHA, torch.arange(3), 0.3, 1) for objective in (other, resident))
    assert (found.gradient - quadratic.gradient).norm() < 1e-3 * quadratic.gradient.norm()
    assert other.cost == resident.cost


class Large(nn.Module):
    """Notes how many of the outputs that it made before are still there at a forward."""

    alive = 0
    most = 0

    def __init__(self):
        super().__init__()
        self.inner = conv_net()

    def forward(self, images):
        outputs = self.inner(images)
        Large.most = max(Large.most, Large.alive)
        Large.alive += 1
        weakref.finalize(outputs, Large.let_go)
        return outputs

    @staticmethod
    def let_go():
        Large.alive -= 1


def test_outputs_are_let_go_before_the_next_are_made(objective_of):
    """Those of a language model may take most of the memory; a quadratic keeps those at its point."""
    objective, _, _ = objective_of(Large)
    for search, most in (
        (lambda: objective.probe_losses(ALPHAS, 1), 0),
        (lambda: objective.validation_terms(ALPHA), 0),
        (lambda: objective.quadratic(ALPHA, torch.arange(3), 0.3, 1), 1),
    ):
        Large.most = 0
        search()
        assert Large.most == most and Large.alive == 0
