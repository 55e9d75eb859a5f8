from dataclasses import replace

import pytest
import torch

from glue_cli.methods.fullgrad import fullgrad
from glue_cli.spec.schema import MixSpec


@pytest.mark.parametrize("optimizer", [{"optimizer": "adam", "lr": 0.05}, {"optimizer": "momentum", "lr": 0.3}])
@pytest.mark.parametrize("target", [[[0.1, 0.6, 0.05, 0.25]], [[0.5, 0.5]], [[0.15, 0.85]], [[0.2, 0.8], [0.7, 0.3]]])
def test_converges_to_the_optimum_inside_the_simplex(quadratic, target, optimizer):
    settings = MixSpec.model_validate(optimizer | {"steps": 800, "validate_every": 10, "patience": 1000})
    learned = fullgrad(quadratic(target), settings, seed=0)
    wanted = torch.tensor(target, dtype=torch.float64)
    torch.testing.assert_close(learned.alpha, wanted, rtol=0, atol=2e-3)


def test_converges_to_the_nearest_corner_of_an_optimum_outside(quadratic):
    settings = MixSpec.model_validate({"lr": 0.2, "steps": 500, "patience": 1000})
    learned = fullgrad(quadratic([2.0, -1.0, -1.0]), settings, seed=0)
    assert learned.alpha[0, 0] > 0.999


@pytest.mark.parametrize("target", [[[0.2, 0.3, 0.5]], [[0.2, 0.3, 0.5], [0.7, 0.2, 0.1]]])
def test_the_first_step_follows_the_chain_rule(quadratic, target):
    objective = quadratic(target)
    beta = torch.zeros(objective.n_groups, 3, dtype=torch.float64, requires_grad=True)
    objective.loss(torch.softmax(beta, -1)).backward()
    records = []
    settings = MixSpec.model_validate({"search": "plain", "optimizer": "momentum", "lr": 0.7, "steps": 1})
    fullgrad(objective, settings, seed=0, observe=records.append)
    torch.testing.assert_close(records[1].alpha, torch.softmax(-0.7 * beta.grad, -1), rtol=1e-12, atol=0)


def test_a_constant_in_the_slopes_changes_nothing(quadratic):
    class Shifted(quadratic):
        def gradient(self, alpha, step):
            loss, slope = super().gradient(alpha, step)
            return loss, slope + 100 * torch.arange(1.0, 3.0)[:, None]  # another one by group

    target = [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]
    settings = MixSpec.model_validate({"steps": 50})
    one, other = (fullgrad(kind(target), settings, seed=0).alpha for kind in (quadratic, Shifted))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


def test_one_gradient_a_step_of_a_plain_search_and_the_seed_is_not_used(quadratic):
    objective = quadratic([0.2, 0.3, 0.5])
    settings = MixSpec.model_validate({"search": "plain", "steps": 5})
    learned = fullgrad(objective, settings, seed=0)
    assert objective.differentiated == [0, 1, 2, 3, 4] and objective.probed == []
    again = fullgrad(quadratic([0.2, 0.3, 0.5]), settings, seed=1)
    assert torch.equal(again.alpha, learned.alpha)
    assert replace(again, alpha=learned.alpha) == learned
