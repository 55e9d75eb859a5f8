"""Means over examples, kept as sums and counts, which can be added over batches or processes."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.running.losses import IGNORED


def mean_of(terms: Tensor) -> Tensor:
    """Return the mean of terms [n], float64 []; converting it to a number waits for the device."""
    return terms.sum(dtype=torch.float64) / len(terms)


@dataclass(frozen=True)
class ExampleSums:
    """The terms of a mean, summed for each example: examples are independent of each other, tokens of a text are not.

    Attributes:
        sums: the sum of each example's terms, [N]. A batch with a single term counts as one example.
        counts: the number of each example's terms, [N].
    """

    sums: Tensor
    counts: Tensor

    @staticmethod
    def of(terms: Tensor, targets: Tensor) -> "ExampleSums":
        """Sum the terms of one batch, [n], for each of its examples; `targets` tell which terms belong to which."""
        is_text = targets.dim() > 1 and not targets.is_floating_point()
        n_terms = (targets != IGNORED).flatten(1).sum(1) if is_text else None
        if n_terms is None or n_terms.sum() != len(terms):
            return ExampleSums(terms, torch.ones_like(terms))
        terms, n_terms = terms.double().cpu(), n_terms.cpu()  # a GPU adds in no fixed order
        texts = torch.repeat_interleave(torch.arange(len(targets)), n_terms)
        return ExampleSums(torch.zeros(len(targets), dtype=torch.float64).index_add(0, texts, terms), n_terms)

    @staticmethod
    def join(parts: Iterable["ExampleSums"]) -> "ExampleSums":
        """Return the sums of several batches joined, float64 on the CPU."""
        pairs = [(part.sums, part.counts) for part in parts]
        return ExampleSums(*(torch.cat([part.cpu() for part in side]).double() for side in zip(*pairs, strict=True)))

    @property
    def shares(self) -> Tensor:
        """Each example's sum divided by the mean count, [N]; the mean of these is the mean over all terms."""
        return self.sums / self.counts.mean()
