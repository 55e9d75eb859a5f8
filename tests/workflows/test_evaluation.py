import torch
from small_nets import Noisy
from torch import nn

from glue_cli.data.dataset import Dataset
from glue_cli.data.loader import Examples
from glue_cli.foundation.ranks import Ranks
from glue_cli.running.device import Compute
from glue_cli.running.evaluation import Evaluation
from glue_cli.workflows.evaluation import add_all


def figures_of(model, *, seed=0):
    draws = torch.Generator().manual_seed(0)
    data = Dataset(torch.rand(600, 2, 4, 4, generator=draws), torch.randint(0, 3, (600,), generator=draws))
    evaluation, compute = Evaluation("cross_entropy"), Compute(torch.device("cpu"))
    add_all(evaluation, model, Examples(data, None, None).on(compute), compute, Ranks(), seed=seed)
    return evaluation.figures()


def test_a_random_forward_draws_the_same_numbers_each_time():
    torch.manual_seed(1)
    model = Noisy()
    before = torch.get_rng_state()
    first = figures_of(model)
    assert torch.equal(torch.get_rng_state(), before)  # nothing else is disturbed
    torch.manual_seed(2)
    assert figures_of(model) == first and figures_of(model, seed=1) != first


def test_batches_draw_different_numbers():
    seen = []

    class Keeping(nn.Module):
        def forward(self, images):
            seen.append(torch.rand(()).item())
            return images.flatten(1)[:, :3]

    figures_of(Keeping())
    assert len(set(seen)) == len(seen) > 1


class Running(nn.Module):
    """Follows its inputs in every forward, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images):
        self.mean = 0.5 * self.mean + 0.5 * images.mean()
        self.count += 1
        return images.flatten(1)[:, :3] * self.mean


def test_what_an_evaluation_has_seen_does_not_stay_in_the_model():
    model = Running()
    mean = model.mean
    first = figures_of(model)
    assert model.mean is mean and model.count == 0 == model.mean
    assert figures_of(model) == first


class Caching(nn.Module):
    """Keeps what it has computed for the longest inputs so far, and follows its inputs by their data."""

    def __init__(self):
        super().__init__()
        self.longest = 0
        self.register_buffer("kept", None, persistent=False)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images):
        if len(images) > self.longest:
            self.longest = len(images)
            self.register_buffer("kept", torch.ones(self.longest, 1), persistent=False)
        self.mean.data.add_(1)
        return images.flatten(1)[:, :3] * self.kept[: len(images)]


def test_caches_stay_as_their_module_knows_them():
    model = Caching()
    model(torch.zeros(5, 2, 4, 4))
    model.mean.zero_()
    figures_of(model)
    assert len(model.kept) == model.longest > 5 and model.mean == 0
