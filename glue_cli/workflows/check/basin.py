"""Whether experts lie in one basin, as far as their weights tell: distances, cosines, and permuted hidden units."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glue_cli.blend.relatedness import FEWEST_ELEMENTS, RELATED, cosines_of, largest_family
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
# Usual names of heads, and names that a single module may have as a head.
_HEAD = re.compile(r"(^|[._])(classifier|classification|heads?|logits|outputs|pooler|projector|score|summary)([._]|$)")
_MAYBE_HEAD = re.compile(r"(^|[._])(fc|linear|out_proj)([._]|$)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


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
        heads: those of `unlike` that belong to heads, which may be new in each expert.
    """

    distances: Tensor
    cosines: Tensor
    difference_cosines: Tensor
    mean_distances: Tensor
    unlike: tuple[str, ...]
    is_permuted: bool
    heads: tuple[str, ...] = ()

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
        """Whether all experts are related to each other, in all tensors but those of heads."""
        is_related = bool((self.pair_cosines >= RELATED).all()) and set(self.unlike) == set(self.heads)
        return not self.is_known or is_related and not self.is_permuted

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
    unlike = [name for name, cosine in weights.smallest_cosines.items() if cosine < RELATED]
    large = [name for name in unlike if experts[0].entries[name].n_elements >= FEWEST_ELEMENTS]
    heads = _heads_of(unlike, [name for name in unlike if name not in large], experts[0].entries)
    unlike = [name for name in unlike if name in large or name in heads]
    other = int(cosines[0].argmin()) if n_experts > 1 else 0
    return Basin(
        distances,
        cosines,
        cosines_of(centred),
        centred.diagonal().clamp_min(0).sqrt() / size,
        tuple(unlike),
        any(_are_permuted(experts[0], experts[other], name) for name in large[:_MOST_TENSORS]),
        heads,
    )


def _heads_of(unlike: Sequence[str], small: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """Return the tensors that belong to modules named like heads, of which one may have a name as in `_MAYBE_HEAD`.

    A layer that there is in several numbered blocks is no head, whatever its name is.

    Args:
        small: those of `unlike` that tell nothing unless their name says that they are a head.
        names: of all tensors.
    """
    repeated = Counter(_NUMBER.sub("#", name) for name in names)
    single = [name for name in unlike if repeated[_NUMBER.sub("#", name)] == 1]
    sure = [name for name in single if _HEAD.search(_module_of(name))]
    others = [name for name in unlike if name not in sure and name not in small]
    is_head = len({_module_of(name) for name in others}) == 1 and others[0] in single
    return tuple(sure + others) if is_head and _MAYBE_HEAD.search(_module_of(others[0])) else tuple(sure)


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _are_permuted(one: Checkpoint, other: Checkpoint, name: str) -> bool:
    """Tell whether the rows of a tensor, or its columns, are those of the other expert's, in another order.

    Its columns are where the layer before it has its hidden units, maybe in a tensor too small to tell.
    """
    entry = one.entries[name]
    if entry.n_elements > _MOST_ELEMENTS:
        return False
    tensors = [read_tensors(expert, [name])[name].double() for expert in (one, other)]
    return any(
        _are_reordered(*(tensor.transpose(0, axis).flatten(1) for tensor in tensors))
        for axis in (0, 1)
        if entry.shape[axis] <= _LARGEST
    )


def _are_reordered(left: Tensor, right: Tensor) -> bool:
    """Tell whether the rows of `left` [n, m] are about those of `right`, in another order."""
    matches = torch.nn.functional.normalize(left) @ torch.nn.functional.normalize(right).T  # [n, n]
    there, back = matches.argmax(1), matches.argmax(0)
    units = torch.arange(len(there))
    is_mutual = (back[there] == units) & (there != units)
    is_found = is_mutual.double().mean() >= _MATCHED
    return bool(is_found and matches.amax(1)[is_mutual].mean() >= _MATCH)
