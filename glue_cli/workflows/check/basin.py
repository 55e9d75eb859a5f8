"""Whether experts lie in one basin, as far as their weights tell: distances, cosines, and permuted hidden units."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.blend.relatedness import RELATED, cosines_of, largest_family
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.tensors import read_tensors
from glue_cli.workflows.check.weights import Weights, of_pairs

# Hidden units are taken to be permuted if this share of them has another unit as its match, both ways, with at least
# this mean cosine: 1.0 and .99 for the first convolution of the digits' permuted experts, .44 and .76 for independent
# ones, whose 32 filters of 9 weights have some match by chance.
_MATCHED, _MATCH = 0.8, 0.5
_LARGEST = 4096  # units, and
_MOST_ELEMENTS = 1 << 24  # elements, of a tensor in which permuted units are looked for
_MOST_TENSORS = 8  # that are looked into
_HEAD = re.compile(r"(^|[._])(classifier|score|fc|heads?|logits|pooler|linear)([._]|$)")  # usual names of heads


@dataclass(frozen=True)
class Basin:
    """What the experts' weights tell.

    Attributes:
        distances: between two experts, relative to the root mean square of all experts' norms, [K, K].
        cosines: between two experts' weights, [K, K].
        difference_cosines: between two experts' differences to the experts' mean, [K, K]; -1/(K - 1) where all go
            their own ways, and near 1 for two experts that differ from the others in the same way.
        mean_distances: of each expert to the mean, relative like `distances`, [K].
        unlike: tensors in which two experts are not related, though they are in most others.
        is_permuted: whether hidden units of one expert are found in another one, in another order.
    """

    distances: Tensor
    cosines: Tensor
    difference_cosines: Tensor
    mean_distances: Tensor
    unlike: tuple[str, ...]
    is_permuted: bool

    @property
    def is_known(self) -> bool:
        """Whether the weights tell anything: there are two experts or more, and matrices that all have."""
        return len(self.cosines) > 1 and bool(torch.isfinite(self.pair_cosines).all())

    @property
    def pair_cosines(self) -> Tensor:
        """The cosines of all pairs, [K (K - 1) / 2]."""
        return of_pairs(self.cosines)

    @property
    def is_one(self) -> bool:
        """Whether all experts are related to each other, in all tensors but those of a head."""
        return not self.is_known or bool((self.pair_cosines >= RELATED).all()) and not inner(self.unlike)

    def largest_family(self) -> list[int]:
        """Return the most experts of which each is related to the first of them."""
        return largest_family(self.cosines)


def find_basin(experts: Sequence[Checkpoint], weights: Weights) -> Basin:
    """Work out distances and cosines from inner products; look for permuted units where experts are not related.

    Cost: reads a few tensors again, of the first expert and the one that is least related to it.
    """
    gram = weights.gram
    squares = gram.diagonal()
    n_experts = len(gram)
    size = squares.mean().sqrt()
    distances = (squares[:, None] + squares - 2 * gram).clamp_min(0).sqrt() / size
    to_mean = gram.mean(1)  # <theta_k, mean>
    centred = gram - to_mean[:, None] - to_mean + gram.mean()  # <theta_j - mean, theta_k - mean>
    cosines = cosines_of(gram)
    unlike = tuple(name for name, cosine in weights.smallest_cosines.items() if cosine < RELATED)
    other = int(cosines[0].argmin()) if n_experts > 1 else 0
    is_permuted = any(_are_permuted(experts[0], experts[other], name) for name in unlike[:_MOST_TENSORS])
    return Basin(
        distances, cosines, cosines_of(centred), centred.diagonal().clamp_min(0).sqrt() / size, unlike, is_permuted
    )


def inner(names: Sequence[str]) -> tuple[str, ...]:
    """Return these tensors unless all of them belong to one module named like a head, which may be new in each."""
    modules = {name.rpartition(".")[0] for name in names}
    return () if len(modules) == 1 and _HEAD.search(modules.pop()) else tuple(names)


def _are_permuted(one: Checkpoint, other: Checkpoint, name: str) -> bool:
    """Tell whether the rows of a tensor are those of the other expert's, in another order."""
    entry = one.entries[name]
    if entry.shape[0] > _LARGEST or entry.n_elements > _MOST_ELEMENTS:
        return False
    left, right = (read_tensors(e, [name])[name].flatten(1).double() for e in (one, other))
    matches = torch.nn.functional.normalize(left) @ torch.nn.functional.normalize(right).T  # [n, n]
    there, back = matches.argmax(1), matches.argmax(0)
    units = torch.arange(len(there))
    is_mutual = (back[there] == units) & (there != units)
    is_found = is_mutual.double().mean() >= _MATCHED
    return bool(is_found and matches.amax(1)[is_mutual].mean() >= _MATCH)
