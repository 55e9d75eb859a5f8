"""Nets whose forwards do what keeps a model from being run block by block as it is."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar

import torch
from torch import nn


class Deep(nn.Module):
    """Layers of one shape, an embedding that the head uses by hand, a loose parameter, and a layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(32, 16, bias=False)
        self.position = nn.Parameter(torch.zeros(16))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, images):
        x = self.embed(images.flatten(1)) + self.position
        for layer in [*self.layers, self.layers[1]]:
            x = x + layer(x)
        return self.head(self.norm(x))


class ByHand(Deep):
    """Uses a weight of a layer outside that layer."""

    def forward(self, images):
        x = nn.functional.linear(images.flatten(1), self.embed.weight) + self.position
        for layer in self.layers:
            x = x + layer(x)
        return self.head(self.norm(x))


class Catching(Deep):
    """Uses a weight of a layer outside that layer, and goes on without it where that fails."""

    def forward(self, images):
        x = images.flatten(1)
        with suppress(Exception):
            x = x @ (self.embed.weight.T @ self.embed.weight)
        for layer in [self.embed, *self.layers]:
            x = layer(x)
        return self.head(self.norm(x))


class Telling(nn.Linear):
    """A layer that also returns its weight."""

    def forward(self, x):
        return super().forward(x).tanh(), self.weight


class Keeping(nn.Module):
    """Holds on to the weights of blocks until others have run."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Telling(32, 32) for _ in range(3)), nn.Linear(32, 3)

    def forward(self, images):
        x, weights = images.flatten(1), []
        for layer in self.layers:
            x, weight = layer(x)
            weights.append(weight)
        for weight in weights:
            x = x @ weight
        return self.head(x)


class Wandering(Deep):
    """Goes another way for each blend, and back and forth."""

    def forward(self, images):
        x = self.embed(images.flatten(1))
        order = [3, 0, 2] if x.sum() > 0 else [1, 0]
        for number in order:
            x = x + self.layers[number](x)
        return self.head(self.norm(x))


class Parallel(Deep):
    """Runs its layers beside each other, in threads."""

    def forward(self, images):
        x = self.embed(images.flatten(1))
        with ThreadPoolExecutor(2) as pool:
            x = x + sum(pool.map(torch.no_grad()(lambda layer: layer(x)), self.layers))
        return self.head(self.norm(x))


class ParallelOrNot(Deep):
    """Runs its layers in threads, and goes on without them where that fails."""

    def forward(self, images):
        x = self.embed(images.flatten(1))
        with ThreadPoolExecutor(1) as pool, suppress(Exception):
            x = x + pool.submit(torch.no_grad()(self.layers[1]), x).result()
        return self.head(self.norm(x))


class AsItsWeights(Deep):
    """Is built in bfloat16, and gives its layers what the weight of one of them looks like."""

    def __init__(self):
        super().__init__()
        self.bfloat16()

    def forward(self, images):
        return super().forward(images.to(self.head.weight.dtype)).float()


class Padded(nn.Module):
    """torch's own encoder, which leaves padding at zero only by its fast way, where it sees all weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        x = self.embed(images.flatten(1).unflatten(1, (8, 4)))
        padding = torch.arange(8)[None] > 2 + torch.arange(len(x))[:, None] % 6
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


class Counting(Deep):
    """Looks for its parameters by their type."""

    def forward(self, images):
        norms = [p.square().sum() for p in self.parameters() if isinstance(p, nn.Parameter)]
        return super().forward(images) / (1 + sum(norms).sqrt())


class Scratch(Deep):
    """Adds up in a buffer what its layers give, and begins each forward with zeros."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 16), persistent=False)

    def forward(self, images):
        self.total.zero_()
        x = self.embed(images.flatten(1)) + self.position
        for layer in self.layers:
            x = x + layer(x) * self.total.tanh()
            self.total += x.mean(0, keepdim=True)
        return self.head(self.norm(x))


SCALE = ContextVar("SCALE")


class Contextual(Deep):
    """Computes its layers by another default dtype, and looks into a context."""

    def forward(self, images):
        x = self.embed(images.flatten(1)) + self.position
        torch.set_default_dtype(torch.float64)
        for layer in self.layers:
            x = x + layer(x) * torch.tensor(1 / 3).to(x.dtype) * SCALE.get()
        torch.set_default_dtype(torch.float32)
        return self.head(self.norm(x) + torch.tensor(1 / 3))


class Stubborn(Deep):
    """Goes on with another layer whatever ended one, and then fails."""

    def forward(self, images):
        x = self.embed(images.flatten(1)) + self.position
        for layer in self.layers:
            try:
                x = x + layer(x)
            except:  # noqa: E722
                x = self.norm(x)
        raise ValueError("too large") if images.sum() > 0 else ArithmeticError("too small")


LOCK = threading.Lock()


class Locked(Deep):
    """Lets one forward run at a time, as a model that threads serve."""

    def forward(self, images):
        with LOCK:
            return super().forward(images)
