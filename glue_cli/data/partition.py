"""Divide the examples: the target's training and validation sets, and the experts' non-IID shares."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.seeds import generator
from glue_cli.spec.schema import TargetSpec


def target_split(n_train: int, target: TargetSpec, *, seed: int, has_val: bool) -> tuple[Tensor, Tensor]:
    """Draw the target's training and validation examples, IID without replacement from the train split.

    Args:
        n_train: number of examples in the train split.
        target: how many to draw; all that is left for training and a tenth of the split for validation by default.
        seed: the run's seed; the draw is a pure function of the arguments. A smaller training set lies inside a larger
            one, and the validation set does not depend on its size.
        has_val: the data set has a val split of its own, so none is drawn.
    Returns:
        sorted int64 indices of the training and of the validation examples, without overlap.
    Raises:
        SpecError: the split has fewer examples than requested.
    """
    n_val = 0 if has_val else target.val if target.val is not None else max(1, n_train // 10)
    wanted = target.train if target.train is not None else max(1, n_train - n_val)
    if wanted + n_val > n_train:
        asked = f"{wanted:,} training" + (f" and {n_val:,} validation" if n_val else "")
        raise SpecError(
            f"data.target asks for {asked} examples, but the train split has {n_train:,}",
            hint="lower data.target.train" + (" or data.target.val" if n_val else ""),
        )
    order = torch.randperm(n_train, generator=generator(seed, "target"))
    return order[n_val : n_val + wanted].sort().values, order[:n_val].sort().values


def draw_val(n_val: int, wanted: int, *, seed: int) -> Tensor:
    """Draw the target's validation examples from a val split of the data set's own, IID without replacement.

    Args:
        n_val: number of examples in the val split.
    Returns:
        sorted int64 indices [wanted], a pure function of the arguments.
    Raises:
        SpecError: there are fewer than `wanted`.
    """
    if wanted > n_val:
        raise SpecError(
            f"data.target asks for {wanted:,} validation examples, but the val split has {n_val:,}",
            hint="lower data.target.val",
        )
    return torch.randperm(n_val, generator=generator(seed, "target", "val"))[:wanted].sort().values


def draw_folds(n: int, n_folds: int, *, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Divide examples at random into folds of similar size; each is held out once, the others are for training.

    Args:
        n: number of examples, 2 or more.
        n_folds: number of folds, lowered to `n` if larger.
    Returns:
        for each fold, the sorted int64 indices of the training and the held-out examples; a pure function of the
            arguments.
    """
    order = torch.randperm(n, generator=generator(seed, "folds"))
    held_out = [order[fold::n_folds].sort().values for fold in range(min(n, n_folds))]
    return [(free_indices(n, indices), indices) for indices in held_out]


def free_indices(n_train: int, *taken: Tensor) -> Tensor:
    """Return the sorted indices of the train split that are in none of `taken`, int64 [n]."""
    free = torch.ones(n_train, dtype=torch.bool)
    for indices in taken:
        free[indices] = False
    return free.nonzero().squeeze(1)


@dataclass(frozen=True)
class Share:
    """An expert's share of the train split.

    Attributes:
        indices: sorted int64 [size].
        class_counts: examples of each class.
        shortfall: how many of the examples drawn for each class it lacked; other classes fill in for them.
    """

    indices: Tensor
    class_counts: tuple[int, ...]
    shortfall: tuple[int, ...]


def dirichlet_share(
    labels: Tensor, free_idx: Tensor, *, size: int, concentration: float, n_classes: int, seed: int, expert: int
) -> Share:
    """Draw an expert's share, whose class proportions are Dirichlet(concentration), without replacement.

    Args:
        labels: of the whole train split, int64 [N].
        free_idx: the examples that may be drawn, int64 [n]: not the target's. Their order does not matter.
        size: examples to draw.
        concentration: of the symmetric Dirichlet distribution; near 0 gives a single class, a large one equal parts.
        n_classes: larger than every label.
        seed, expert: the draw is a pure function of these and the other arguments, whatever the other experts draw.
    Raises:
        SpecError: there are fewer free examples than `size`.
    """
    if size > len(free_idx):
        raise SpecError(
            f"experts.size is {size:,}, but data.target leaves {len(free_idx):,} of {len(labels):,} training examples",
            hint="lower experts.size, data.target.train or data.target.val",
        )
    draws = generator(seed, "share", expert)
    proportions = _dirichlet(concentration, n_classes, draws)
    shuffled = free_idx.sort().values[torch.randperm(len(free_idx), generator=draws)]
    classes, order = labels[shuffled].sort(stable=True)
    available = classes.bincount(minlength=n_classes)
    wanted = _apportion(proportions, size)
    counts = _fill(proportions, available, size)
    ranks = torch.arange(len(classes)) - (available.cumsum(0) - available)[classes]  # by class, in random order
    drawn = shuffled[order[ranks < counts[classes]]]
    shortfall = (wanted - available).clamp(min=0)
    return Share(drawn.sort().values, tuple(counts.tolist()), tuple(shortfall.tolist()))


def _dirichlet(concentration: float, n_classes: int, draws: torch.Generator) -> Tensor:
    """Draw from a symmetric Dirichlet distribution, float64 [n_classes], sum 1.

    Normalises Gamma(a) variates in logarithms: for small a, Gamma(a) = Gamma(a + 1) U^(1/a) underflows to zero in all
    classes, while log Gamma(a + 1) + log(U)/a still shows the largest.
    """
    shape = torch.full((n_classes,), concentration + 1.0, dtype=torch.float64)
    gamma = torch._standard_gamma(shape, generator=draws)
    uniform = torch.rand(n_classes, dtype=torch.float64, generator=draws)  # [0, 1)
    return torch.softmax(gamma.log() + torch.log1p(-uniform) / concentration, 0)


def _apportion(weights: Tensor, total: int) -> Tensor:
    """Split `total` in proportion to `weights` by the largest remainder method; int64 that sum to exactly `total`."""
    quotas = weights / weights.sum() * total
    counts = quotas.long()
    remainders = torch.where(weights > 0, quotas - counts, -1.0)
    n_left = total - int(counts.sum())
    counts[remainders.sort(descending=True, stable=True).indices[:n_left]] += 1
    return counts


def _fill(proportions: Tensor, available: Tensor, size: int) -> Tensor:
    """Return class counts close to `proportions` and at most `available`; other classes make up for a lack."""
    counts = torch.zeros_like(available)
    while (n_left := size - int(counts.sum())) > 0:  # each round assigns all that is left, or exhausts a class
        is_open = counts < available
        weights = torch.where(is_open, proportions, 0.0)
        if weights.sum() == 0:  # the remaining classes have proportion 0: weight them by the examples left
            weights = (available - counts).double()
        counts = torch.minimum(counts + _apportion(weights, n_left), available)
    return counts
