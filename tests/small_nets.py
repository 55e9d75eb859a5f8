"""Small models of several kinds, experts near each other, and their losses by other means: in float64, by torch."""

import copy
import itertools

import torch
from torch import nn
from torch.nn import functional as F

from glue_cli.blend.recipe import PLAIN, Recipe

N, N_CLASSES = 12, 3


def conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6, affine=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, N_CLASSES),
        nn.BatchNorm1d(N_CLASSES),
    )


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 5, batch_first=True)
        self.head = nn.Linear(5, N_CLASSES)

    def forward(self, images):
        return self.head(self.lstm(images.flatten(2).transpose(1, 2)[..., [0, 1] * 4])[0][:, -1])


class Attentive(nn.Module):
    """A transformer's layer, a position embedding of its own, and a head that is tied to a weight below it."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(16, 2))
        self.layer = nn.TransformerEncoderLayer(2, 1, 8, batch_first=True)
        self.body, self.head = nn.Linear(32, 32), nn.Linear(32, 32)
        self.head.weight = self.body.weight

    def forward(self, images):
        tokens = self.layer(images.flatten(2).transpose(1, 2) + self.position)
        return self.head(self.body(tokens.flatten(1)).relu())[:, :N_CLASSES]


def normed():
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(32, N_CLASSES))
    return nn.Sequential(nn.Flatten(), linear)


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.inner = conv_net()

    def forward(self, images):
        return F.dropout(self.inner(images), 0.5, training=True)


def make_experts(make, n_experts=3):
    """Return the model, and experts near each other as state dicts, running statistics included."""
    torch.manual_seed(0)
    model = make()
    experts = []
    for _ in range(n_experts):
        expert = {}
        for name, tensor in model.state_dict().items():
            noise = 0.3 * torch.randn_like(tensor) if tensor.is_floating_point() else 0
            expert[name] = (tensor + noise).abs() + 0.2 if name.endswith("running_var") else tensor + noise
        for name, tensor in model.named_parameters(remove_duplicate=False):
            same = [other for other, t in model.named_parameters(remove_duplicate=False) if t is tensor]
            expert[name] = expert[same[0]]
        experts.append(expert)
    return model, experts


def batch_of(step, loss="cross_entropy"):
    random = torch.Generator().manual_seed(step)
    inputs = torch.randn(N, 2, 4, 4, generator=random)
    if loss == "mse":
        return inputs, torch.randn(N, N_CLASSES, generator=random)
    return inputs, torch.randint(0, N_CLASSES, (N,), generator=random)


BOTH = [batch_of(100), tuple(part[:5] for part in batch_of(101))]  # the validation set


def blended(experts, alpha, recipe=PLAIN):
    """Return theta(alpha) in float64, alpha [G, K]; whole numbers stay the first expert's."""
    names = [name for name, tensor in experts[0].items() if tensor.is_floating_point()]
    own = {name: alpha[recipe.group_of.get(name, 0)] for name in names}
    return {name: sum(a * e[name].double() for a, e in zip(own[name], experts, strict=True)) for name in names}


def in_turn(make, n_groups):
    """Return a recipe that deals the tensors of a model out to groups."""
    names = enumerate(make().state_dict())
    return Recipe(tuple(f"g{group}" for group in range(n_groups)), {name: i % n_groups for i, name in names})


def wide_loss(model, theta, batch, loss="cross_entropy", by_batch=False):
    """Return the loss in float64, by torch's own eval mode; BatchNorm by the batch's statistics where asked for."""
    wide = copy.deepcopy(model).double().eval()
    for module in wide.modules():
        module.training = by_batch and isinstance(module, nn.modules.batchnorm._BatchNorm)
    inputs, targets = batch
    outputs = torch.func.functional_call(wide, theta, (inputs.double(),), tie_weights=False)
    return F.cross_entropy(outputs, targets) if loss == "cross_entropy" else F.mse_loss(outputs, targets.double())


def wide_outputs(model, theta, batch):
    wide = copy.deepcopy(model).double().eval()
    return torch.func.functional_call(wide, theta, (batch[0].double(),), tie_weights=False).detach()


def slopes_by_beta(loss_at, alpha, radius=1e-4):
    """Return dL/dbeta at alpha = softmax(beta) by central differences in float64."""
    beta, slopes = alpha.log(), torch.zeros_like(alpha)
    for place in itertools.product(*map(range, beta.shape)):
        step = torch.zeros_like(beta)
        step[place] = radius
        there, back = (loss_at(torch.softmax(beta + sign * step, 1)) for sign in (1, -1))
        slopes[place] = (there - back) / (2 * radius)
    return slopes


def by_beta(alpha, by_alpha):
    """Return dL/dbeta from dL/dalpha, both [G, K]."""
    return alpha * (by_alpha - (alpha * by_alpha).sum(1, keepdim=True))


class Speaking(nn.Module):
    """Predicts one of 40 tokens at each of two places."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 40)

    def forward(self, images):
        return self.head(images.flatten(2))


ALPHA = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
ALPHAS = torch.stack([ALPHA, torch.eye(3, dtype=torch.float64)[1:2], torch.full((1, 3), 1 / 3, dtype=torch.float64)])
ALPHA_OF_TWO = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]], dtype=torch.float64)
ALPHAS_OF_TWO = torch.stack([ALPHA_OF_TWO, torch.eye(3, dtype=torch.float64)[1:], ALPHA_OF_TWO.flip(0)])
