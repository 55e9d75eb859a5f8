"""The examples of a data set, and batches of them on a device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from glue_cli.data.batches import (
    batches_by_length,
    bucketed_batches,
    crop,
    epoch_batches,
    flip,
    normalise,
    token_batch,
)
from glue_cli.data.classes import Classes, renumbered
from glue_cli.data.dataset import Dataset, Ragged
from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.seeds import generator
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch
from glue_cli.spec.schema import AugmentSpec

_EVALUATION_BATCH = 250

_EVALUATION_TOKENS = 4096  # with these, the outputs of a language model with 50,000 tokens take 0.8 GB


@dataclass(frozen=True)
class Examples:
    """A data set with its mean and std for normalisation; images stay uint8 until they are in a batch."""

    dataset: Dataset
    mean: Sequence[float] | None
    std: Sequence[float] | None

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def class_names(self) -> list[str] | None:
        return list(self.dataset.class_names) if self.dataset.class_names else None

    def subset(self, indices: Tensor) -> "Examples":
        return Examples(self.dataset.subset(indices), self.mean, self.std)

    def renumbered(self, classes: Classes, where: str) -> "Examples":
        """Return the same examples with labels renumbered to other classes; see `data.classes.renumber`."""
        return replace(self, dataset=renumbered(self.dataset, classes, where))

    def joins(self, other: "Examples") -> bool:
        """Tell whether these examples and the other's fit into one data set; images may differ in size."""
        return self.dataset.joins(other.dataset)

    def joined(self, other: "Examples") -> "Examples":
        """Return these examples followed by the other's, from the same data set."""
        return Examples(self.dataset.joined(other.dataset), self.mean, self.std)

    @property
    def first_in_order(self) -> "Examples":
        """The examples of the first batch of an evaluation, which is the largest."""
        return self.subset(_parts_in_order(self.dataset, _EVALUATION_BATCH)[0])

    def on(self, compute: Compute) -> "Batches":
        """Return batches of the examples on a device."""
        return Batches(self, compute)


class Batches:
    """Batches of examples on the device: float32, normalised, in the run's memory format; or texts, padded."""

    def __init__(self, examples: Examples, compute: Compute) -> None:
        self._device = compute.device
        self._dataset = examples.dataset.to(compute.device)
        self._normalise = partial(normalise, mean=examples.mean, std=examples.std, channels_last=compute.channels_last)
        self._last_order: tuple[tuple[int, int], Tensor] | None = None  # of `at_step`: seed and epoch, and the order

    def __len__(self) -> int:
        return len(self._dataset)

    def pick(self, indices: Tensor, augment: AugmentSpec | None = None, draws: torch.Generator | None = None) -> Batch:
        """Return the examples at `indices`, int64 [n], on the CPU, augmented if requested."""
        inputs, targets = self._dataset.inputs, self._dataset.targets
        if isinstance(inputs, Ragged):
            has_decoder = self._dataset.has_decoder
            tokens, wanted = token_batch(inputs[indices], targets[indices], has_decoder=has_decoder)
            return {name: tensor.to(self._device) for name, tensor in tokens.items()}, wanted.to(self._device)
        assert isinstance(targets, Tensor)
        indices = indices.to(self._device)
        inputs = inputs[indices]
        if augment and draws:
            inputs = crop(inputs, augment.crop, draws) if augment.crop else inputs
            inputs = flip(inputs, draws) if augment.flip else inputs
        return self._normalise(inputs), targets[indices]

    @property
    def n_in_order(self) -> int:
        """The number of batches that `in_order` yields."""
        return len(_parts_in_order(self._dataset, _EVALUATION_BATCH))

    def in_order(self, batch_size: int = _EVALUATION_BATCH, numbers: range | None = None) -> Iterator[Batch]:
        """Yield all examples in order, for evaluation; texts from the longest to the shortest.

        Args:
            numbers: of the batches to yield; None for all.
        """
        parts = _parts_in_order(self._dataset, batch_size)
        for number in range(len(parts)) if numbers is None else numbers:
            yield self.pick(parts[number])

    def in_random_order(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yield all examples in parts of similar size, the first ones representative; the same at each call."""
        draws = generator(seed, "validation")
        if isinstance(self._dataset.inputs, Ragged):
            parts = _parts_in_order(self._dataset, batch_size)
            order = torch.randperm(len(parts), generator=draws).tolist()
            yield from (self.pick(parts[i]) for i in order)
        else:
            shuffled = torch.randperm(len(self), generator=draws)
            yield from map(self.pick, torch.tensor_split(shuffled, self.n_in_random_order(batch_size)))

    def n_in_random_order(self, batch_size: int) -> int:
        """Return the number of batches that `in_random_order` yields, without making them."""
        if isinstance(self._dataset.inputs, Ragged):
            return len(_parts_in_order(self._dataset, batch_size))
        return -(-len(self) // batch_size)

    def epoch(self, batch_size: int, seed: int, epoch: int, augment: AugmentSpec) -> Iterator[Batch]:
        """Yield the examples in the random order of one epoch, a pure function of seed and epoch.

        Raises:
            SpecError: `augment` asks for an augmentation that needs images.
        """
        inputs = self._dataset.inputs
        order, draws = generator(seed, "order", epoch), generator(seed, "augment", epoch)
        single_left = len(self) % batch_size == 1 and len(self) > 1  # BatchNorm needs more than one example
        if (augment.crop or augment.flip) and (isinstance(inputs, Ragged) or inputs.dim() != 4):
            raise SpecError("augment crops and flips images, but the data are none", hint="remove it from the spec")
        if isinstance(inputs, Ragged):
            batches = bucketed_batches(_lengths(self._dataset), batch_size, order, drop_last=single_left)
        else:
            batches = epoch_batches(len(self), batch_size, order, drop_last=single_left)
        for indices in batches:
            yield self.pick(indices, augment, draws)

    def at_step(self, step: int, batch_size: int, seed: int) -> Batch:
        """Return the minibatch of one mixing step: epochs of random order, cut into batches of equal size."""
        return self.pick(self.places_at_step(step, batch_size, seed))

    def places_at_step(self, step: int, batch_size: int, seed: int) -> Tensor:
        """Return the indices of the examples in the minibatch of a mixing step, int64 [n].

        Cost: the order of an epoch is drawn once for consecutive steps: 29 ms for a million examples.
        """
        batch_size = min(batch_size, len(self))
        per_epoch = len(self) // batch_size
        epoch, position = divmod(step, per_epoch)
        order = self._order(seed, epoch)
        return order[position * batch_size : (position + 1) * batch_size]

    def _order(self, seed: int, epoch: int) -> Tensor:
        """Return the order of the examples in an epoch of mixing; the last order is cached."""
        if self._last_order is None or self._last_order[0] != (seed, epoch):
            order = torch.randperm(len(self), generator=generator(seed, "mix", epoch))
            self._last_order = (seed, epoch), order
        return self._last_order[1]


def _parts_in_order(dataset: Dataset, batch_size: int) -> Sequence[Tensor]:
    """Return the indices of each batch of an evaluation: in order, but texts from the longest to the shortest."""
    if isinstance(dataset.inputs, Ragged):
        return list(batches_by_length(_lengths(dataset), batch_size, _EVALUATION_TOKENS))
    return torch.split(torch.arange(len(dataset)), batch_size)


def _lengths(dataset: Dataset) -> Tensor:
    """Return the lengths of texts, int64 [N]; of what is read and what is to be written, the longer one's."""
    assert isinstance(dataset.inputs, Ragged)
    if dataset.has_decoder and isinstance(dataset.targets, Ragged):
        return torch.maximum(dataset.inputs.lengths, dataset.targets.lengths)
    return dataset.inputs.lengths
