"""Means over examples, as sums and counts: those of several batches, or of several processes, can be added."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.running.losses import IGNORED


class Mean:
    """The mean of terms that come batch by batch.

    Attributes:
        total: the sum of the terms, float64 [], on their device.
        n_terms: how many they are.
    """

    def __init__(self) -> None:
        self.total, self.n_terms = torch.zeros((), dtype=torch.float64), 0

    def add(self, terms: Tensor) -> "Mean":
        """Add terms [n]; return the mean itself."""
        self.total = self.total + terms.sum(dtype=torch.float64)
        self.n_terms += len(terms)
        return self

    @property
    def value(self) -> Tensor:
        """The mean, float64 []; reading it as a number waits for the device."""
        return self.total / self.n_terms


@dataclass(frozen=True)
class ExampleSums:
    """The terms of a mean, example by example: examples are independent of each other, the tokens of a text are not.

    Attributes:
        sums: of each example's terms, [N]; counts: how many they are, [N]. Where a whole batch has one term, it counts
            as one example.
    """

    sums: Tensor
    counts: Tensor

    @staticmethod
    def of(terms: Tensor, targets: Tensor) -> "ExampleSums":
        """Sum up the terms of one batch, [n], by the examples that its targets belong to."""
        is_text = targets.dim() > 1 and not targets.is_floating_point()
        n_terms = (targets != IGNORED).flatten(1).sum(1) if is_text else None
        if n_terms is None or n_terms.sum() != len(terms):
            return ExampleSums(terms, torch.ones_like(terms))
        terms, n_terms = terms.double().cpu(), n_terms.cpu()  # a GPU would add in any order
        texts = torch.repeat_interleave(torch.arange(len(targets)), n_terms)
        return ExampleSums(torch.zeros(len(targets), dtype=torch.float64).index_add(0, texts, terms), n_terms)

    @staticmethod
    def join(parts: Iterable["ExampleSums"]) -> "ExampleSums":
        """Return the sums of several batches as one, float64 on the CPU."""
        pairs = [(part.sums, part.counts) for part in parts]
        return ExampleSums(*(torch.cat([part.cpu() for part in side]).double() for side in zip(*pairs, strict=True)))

    @property
    def shares(self) -> Tensor:
        """One number an example, whose plain mean is the mean over all terms: its sum by the mean count, [N]."""
        return self.sums / self.counts.mean()
