import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import hessian, jacobian
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glue_cli.foundation.seeds import generator
from glue_cli.running.losses import IGNORED
from glue_cli.search.secants import Secants, quadratic_of

N, C, K = 7, 4, 3
SHAPES = {"labels": (N, C), "tokens": (2, 5, C), "numbers": (N, C), "a number": (N, 1)}


def problem(kind, scale=1.0):
    """Return a kind's loss, the outputs at a point, those of K experts, and targets."""
    random, shape = generator(0, kind), SHAPES[kind]
    z, *experts = scale * torch.randn(1 + K, *shape, generator=random)
    if "number" in kind:
        return "mse", z, experts, torch.randn(shape if kind == "numbers" else N, generator=random)
    targets = torch.randint(0, C, shape[:-1], generator=random)
    if kind == "tokens":
        targets[0, 0] = targets[1, 2:4] = IGNORED
    return "cross_entropy", z, experts, targets


def whole(secants, targets, loss):
    """Return the loss to second order, of all examples together."""
    found = quadratic_of(secants.slopes, secants.roots, targets, loss)
    return replace(found, gradient=found.gradient.sum(0), curvature=found.curvature.sum(0))


def by_secants(kind, z, experts, targets, *, radius, seed=0):
    """Return the loss to second order; the outputs change linearly, whatever the radius."""
    loss = "mse" if "number" in kind else "cross_entropy"
    secants = Secants(loss, z, targets, radius=radius, draws=generator(seed))
    for expert in experts:
        secants.add(z + radius * (expert - z))
    return whole(secants, targets, 1.25)


def by_derivatives(kind, z, experts, targets):
    """Return gradient and Hessian of the loss along the ways to the experts, by autograd in float64."""
    ways = torch.stack(experts).double() - z.double()

    def loss_at(x):
        outputs = z.double() + (x[:, None] * ways.flatten(1)).sum(0).view_as(z)
        if "number" in kind:
            return F.mse_loss(outputs.view_as(targets), targets.double())
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)

    nowhere = torch.zeros(len(ways), dtype=torch.float64)
    return jacobian(loss_at, nowhere), hessian(loss_at, nowhere)


@pytest.mark.parametrize("kind", ["labels", "numbers", "a number"])
@pytest.mark.parametrize("radius", [0.01, 0.3, 1.0])
def test_exact_where_outputs_are_linear_along_the_directions(kind, radius):
    _, *given = problem(kind)
    found = by_secants(kind, *given, radius=radius)
    gradient, curvature = by_derivatives(kind, *given)
    assert found.loss == 1.25 and found.gradient.dtype == found.curvature.dtype == torch.float64
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.curvature, curvature, rtol=1e-4, atol=1e-4)
    assert curvature.diagonal().min() > 0.1  # the tolerances are small beside it


@pytest.mark.parametrize("radius", [0.1, 1.0])
def test_of_tokens_the_slopes_are_exact_and_the_curvatures_so_on_average(radius):
    _, *given = problem("tokens")
    found = [by_secants("tokens", *given, radius=radius, seed=seed) for seed in range(300)]
    gradient, curvature = by_derivatives("tokens", *given)
    for one in found:
        torch.testing.assert_close(one.gradient, gradient, rtol=1e-4, atol=1e-5)
    draws = torch.stack([one.curvature for one in found])
    errors = draws.std(0) / math.sqrt(len(draws))
    assert 0 < errors.max() < 0.01 * curvature.diagonal().mean()
    assert ((draws.mean(0) - curvature).abs() < 5 * errors + 1e-5).all()


def test_one_draw_of_tokens_is_near_and_repeats_with_its_seed():
    _, *given = problem("tokens")
    _, curvature = by_derivatives("tokens", *given)
    one, same, other = (by_secants("tokens", *given, radius=0.1, seed=seed).curvature for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert (one - curvature).norm() < 0.2 * curvature.norm()


def test_a_large_vocabulary_where_few_tokens_are_likely():
    z, *experts = 6 * torch.randn(1 + K, 3, 20, 5000, generator=generator(0))
    targets = torch.randint(0, 5000, (3, 20), generator=generator(1))
    found = by_secants("tokens", z, experts, targets, radius=0.2)
    gradient, curvature = by_derivatives("tokens", z, experts, targets)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-4, atol=1e-4)
    assert (found.curvature - curvature).norm() < 0.1 * curvature.norm()


@pytest.mark.parametrize("value", [1e4, math.nan])
def test_what_stands_at_ignored_targets_does_not_count(value):
    _, z, experts, targets = problem("tokens")
    wanted = by_secants("tokens", z, experts, targets, radius=0.1)
    for outputs in (z, *experts):
        outputs[targets == IGNORED] = value
    found = by_secants("tokens", z, experts, targets, radius=0.1)
    assert torch.equal(found.gradient, wanted.gradient) and torch.equal(found.curvature, wanted.curvature)


def test_more_rows_than_are_taken_at_a_time():
    for kind, shape in {"labels": (300, C), "tokens": (3, 100, C)}.items():
        z, *experts = torch.randn(1 + K, *shape, generator=generator(0))
        targets = torch.randint(0, C, shape[:-1], generator=generator(1))
        found = by_secants(kind, z, experts, targets, radius=0.2)
        gradient, curvature = by_derivatives(kind, z, experts, targets)
        torch.testing.assert_close(found.gradient, gradient, rtol=1e-4, atol=1e-5)
        assert (found.curvature - curvature).norm() < (1e-4 if kind == "labels" else 0.05) * curvature.norm()


def test_a_text_without_targets_and_outputs_that_are_a_part_of_others():
    random = generator(0)
    z, *experts = torch.randn(1 + K, 3, 6, C, generator=random)[:, :, :-1]  # not contiguous
    targets = torch.randint(0, C, (3, 5), generator=random)
    targets[2] = IGNORED  # the last, so that the others have the same draws without it
    found = by_secants("tokens", z, experts, targets, radius=0.1)
    some = [outputs[:2] for outputs in (z, *experts)]
    wanted = by_secants("tokens", some[0], some[1:], targets[:2], radius=0.1)
    torch.testing.assert_close(found.gradient, wanted.gradient)
    torch.testing.assert_close(found.curvature, wanted.curvature)


def storages_in(tree):
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return {StorageWeakRef(storage): storage.nbytes() for storage in storages}


class MadeBytes(TorchDispatchMode):
    """The most bytes that were held at a time by tensors made since it was entered."""

    def __init__(self):
        super().__init__()
        self.most, self._held = 0, {}

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        made = call(*args, **(kwargs or {}))
        given, new = storages_in((args, kwargs)), storages_in(made)
        self._held |= {storage: n for storage, n in new.items() if storage not in given}  # a view holds nothing
        self._held = {storage: n for storage, n in self._held.items() if not storage.expired()}
        self.most = max(self.most, sum(self._held.values()))
        return made


@pytest.mark.parametrize("shape", [(8, 128, 8000), (1, 1024, 8000)])
def test_tokens_take_a_part_of_the_memory_that_their_outputs_would_in_float32(shape):
    z, *ends = torch.randn(1 + K, *shape, generator=generator(0)).bfloat16()
    targets = torch.randint(0, shape[-1], shape[:-1], generator=generator(1))
    with MadeBytes() as made:
        secants = Secants("cross_entropy", z, targets, radius=0.1, draws=generator(0))
        for end in ends:
            secants.add(end)
        whole(secants, targets, 0.0)
    assert 0.1 < made.most / (4 * z.numel()) < 0.3


@pytest.mark.parametrize("kind", ["labels", "tokens", "numbers"])
def test_bfloat16_outputs_are_subtracted_in_float32(kind):
    loss, z, experts, targets = problem(kind)
    narrow = [outputs.bfloat16() for outputs in (z, *experts)]
    quadratics = []
    for outputs in (narrow, [tensor.float() for tensor in narrow]):
        secants = Secants(loss, outputs[0], targets, radius=0.1, draws=generator(0))
        for end in outputs[1:]:
            secants.add(end)
        quadratics.append(whole(secants, targets, 0.0))
    assert torch.equal(quadratics[0].gradient, quadratics[1].gradient)
    assert torch.equal(quadratics[0].curvature, quadratics[1].curvature)


@pytest.mark.parametrize("kind", ["labels", "tokens", "numbers"])
def test_a_direction_along_which_nothing_changes(kind):
    _, z, experts, targets = problem(kind)
    found = by_secants(kind, z, [experts[0], z, experts[1]], targets, radius=0.5)
    assert found.gradient[1] == 0 and (found.curvature[1] == 0).all() and (found.curvature[:, 1] == 0).all()
    assert (found.curvature.diagonal()[[0, 2]] > 0).all()


@pytest.mark.parametrize("kind", ["labels", "tokens"])
def test_classes_that_a_model_masks_with_minus_infinity_do_not_count(kind):
    loss, z, experts, targets = problem(kind)

    def found(mask):
        secants = Secants(loss, mask(z), targets, radius=0.1, draws=generator(0))
        for expert in experts:
            secants.add(mask(z + 0.1 * (expert - z)))
        return whole(secants, targets, 1.25)

    plain, masked = found(lambda outputs: outputs), found(lambda outputs: F.pad(outputs, (0, 2), value=-math.inf))
    torch.testing.assert_close(masked.gradient, plain.gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(masked.curvature, plain.curvature, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["labels", "tokens"])
def test_a_constant_added_to_all_logits_has_no_slope_and_no_curvature(kind):
    _, z, experts, targets = problem(kind)
    found = by_secants(kind, z, [z + 3, experts[0]], targets, radius=0.5)
    assert abs(found.gradient[0]) < 1e-5 and found.curvature[0].abs().max() < 1e-5 < found.curvature[1, 1]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(SHAPES)), st.floats(-6, 3), st.integers(1, 8), st.floats(0.01, 1), st.integers(0, 2**32))
def test_no_curvature_is_negative(kind, log_scale, n, radius, seed):
    """Also where outputs are so large that only one class has a probability."""
    loss, _, _, targets = problem(kind)
    z, *ends = 10**log_scale * torch.randn(1 + n, *SHAPES[kind], generator=generator(seed))
    secants = Secants(loss, z, targets, radius=radius, draws=generator(seed))
    for end in ends:
        secants.add(end)
    found = whole(secants, targets, 0.0)
    assert found.gradient.shape == (n,) and found.curvature.shape == (n, n)
    assert found.gradient.isfinite().all() and found.curvature.isfinite().all()
    values = torch.linalg.eigvalsh(found.curvature)
    assert values.min() >= -1e-5 * values.max()
    assert (found.curvature - found.curvature.T).abs().max() <= 1e-6 * values.max()


@pytest.mark.parametrize("kind", SHAPES)
def test_folds_add_up_to_the_whole(kind):
    loss, z, experts, targets = problem(kind)
    secants = Secants(loss, z, targets, radius=0.1, draws=generator(0))
    for expert in experts:
        secants.add(z + 0.1 * (expert - z))
    folds = torch.arange(len(targets)) % 3
    together, parts = (quadratic_of(secants.slopes, secants.roots, targets, 1.0, *of) for of in ((), (folds, 3)))
    assert parts.gradient.shape == (3, K) and parts.curvature.shape == (3, K, K)
    torch.testing.assert_close(parts.gradient.sum(0), together.gradient[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(parts.curvature.sum(0), together.curvature[0], rtol=1e-5, atol=1e-7)
    assert (torch.linalg.eigvalsh(parts.curvature) > -1e-6).all() and parts.n_examples == len(targets)


@pytest.mark.parametrize("kind", ["labels", "numbers", "a number"])
def test_a_fold_is_its_examples_alone(kind):
    _, z, experts, targets = problem(kind)
    folds = torch.tensor([0, 1, 1, 0, 2, 1, 0])
    loss = "mse" if "number" in kind else "cross_entropy"

    def quadratic(chosen, folds=None):
        secants = Secants(loss, z[chosen], targets[chosen], radius=0.1, draws=generator(0))
        for expert in experts:
            secants.add((z + 0.1 * (expert - z))[chosen])
        return quadratic_of(secants.slopes, secants.roots, targets[chosen], 1.0, folds, 3)

    parts = quadratic(torch.arange(N), folds)
    for fold in range(3):
        chosen = (folds == fold).nonzero()[:, 0]
        alone = quadratic(chosen)
        torch.testing.assert_close(parts.gradient[fold], alone.gradient[0] * len(chosen) / N, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(parts.curvature[fold], alone.curvature[0] * len(chosen) / N, rtol=1e-5, atol=1e-7)
