"""The examples that a command works on: which parts of which data set, and their batches on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from glue_cli.core.device import Compute
from glue_cli.core.errors import DataError
from glue_cli.core.forward import Batch
from glue_cli.core.progress import Noted
from glue_cli.core.seeds import generator
from glue_cli.core.spec import AugmentSpec, DataSpec, Spec
from glue_cli.data import FORMATS, normalisation, read_dataset
from glue_cli.data.batches import crop, epoch_batches, flip, normalise
from glue_cli.data.dataset import Dataset
from glue_cli.data.partition import dirichlet_share, free_indices, target_split
from glue_cli.workflows.plan import Run

_EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Examples:
    """A data set and how it is normalised; images stay uint8 until they are in a batch."""

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

    def on(self, compute: Compute) -> "Batches":
        """Return the examples as batches on a device."""
        return Batches(self, compute)


class Batches:
    """Batches of examples on the device, float32, normalised, in the run's memory format."""

    def __init__(self, examples: Examples, compute: Compute) -> None:
        self._inputs = examples.dataset.inputs.to(compute.device)
        self._targets = examples.dataset.targets.to(compute.device)
        self._normalise = partial(normalise, mean=examples.mean, std=examples.std, channels_last=compute.channels_last)

    def __len__(self) -> int:
        return len(self._targets)

    def pick(self, indices: Tensor, augment: AugmentSpec | None = None, draws: torch.Generator | None = None) -> Batch:
        """Return the examples at `indices`, int64 [n], on the CPU, augmented when asked."""
        indices = indices.to(self._inputs.device)
        inputs = self._inputs[indices]
        if augment and draws:
            inputs = crop(inputs, augment.crop, draws) if augment.crop else inputs
            inputs = flip(inputs, draws) if augment.flip else inputs
        return self._normalise(inputs), self._targets[indices]

    @property
    def n_in_order(self) -> int:
        """The number of batches that `in_order` yields."""
        return -(-len(self) // _EVALUATION_BATCH)

    def in_order(self, batch_size: int = _EVALUATION_BATCH) -> Iterator[Batch]:
        """Yield all examples in order, for evaluation."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield self._normalise(self._inputs[part]), self._targets[part]

    def epoch(self, batch_size: int, seed: int, epoch: int, augment: AugmentSpec) -> Iterator[Batch]:
        """Yield the examples in the random order of one epoch, a pure function of seed and epoch."""
        draws = generator(seed, "augment", epoch)
        single_left = len(self) % batch_size == 1 and len(self) > 1  # BatchNorm has no statistics of one example
        for indices in epoch_batches(len(self), batch_size, generator(seed, "order", epoch), drop_last=single_left):
            yield self.pick(indices, augment, draws)

    def at_step(self, step: int, batch_size: int, seed: int) -> Batch:
        """Return the minibatch of one mixing step: epochs of random order, cut into batches of equal size."""
        batch_size = min(batch_size, len(self))
        per_epoch = len(self) // batch_size
        epoch, position = divmod(step, per_epoch)
        order = torch.randperm(len(self), generator=generator(seed, "mix", epoch))
        return self.pick(order[position * batch_size : (position + 1) * batch_size])


def read_target(spec: Spec, splits: Sequence[str], run: Run) -> dict[str, Examples]:
    """Read those of the target's train, val and test examples that are asked for.

    Raises:
        DataError: the data set is missing or damaged.
        SpecError: the spec asks for more examples than there are.
    """
    found: dict[str, Examples] = {}
    if "test" in splits:
        found["test"] = _read(spec, spec.data, "test", run)
    if "train" in splits or "val" in splits:
        whole = _read(spec, spec.data, "train", run)
        train, val, own_val = _split(spec, whole, run)
        found["train"] = whole.subset(train)
        found["val"] = own_val or whole.subset(val)
    return {split: found[split] for split in splits}


def read_expert(spec: Spec, expert: int, run: Run) -> Examples:
    """Read an expert's training data: its own data set, or its Dirichlet share of the data's train split.

    The share is a pure function of the spec, the seed and the expert's number.
    """
    assert spec.experts is not None
    if spec.experts.members:
        return _read(spec, _with_target_normalisation(spec.experts.members[expert].data, spec.data), "train", run)
    assert spec.experts.size is not None
    whole = _read(spec, spec.data, "train", run)
    train, val, _ = _split(spec, whole, run)
    labels = whole.dataset.targets
    share = dirichlet_share(
        labels,
        free_indices(len(whole), train, val),
        size=spec.experts.size,
        concentration=spec.experts.dirichlet,
        n_classes=len(whole.dataset.class_names or ()) or int(labels.max()) + 1,
        seed=spec.seed,
        expert=expert,
    )
    if any(share.shortfall):
        short = [label for label, n in enumerate(share.shortfall) if n]
        which = f"class {short[0]} has" if len(short) == 1 else f"{len(short)} classes have"
        lack = f"{sum(share.shortfall)} examples too few for this expert's share"
        run.progress(Noted(f"{which} {lack}; other classes make up for them", warning=True))
    return whole.subset(share.indices)


def _read(spec: Spec, data: DataSpec, split: str, run: Run) -> Examples:
    dataset = read_dataset(data, split, root=spec.path(data.root), cache=run.cache, progress=run.progress)
    assert dataset is not None
    if len(dataset) == 0:
        raise DataError(f"'{spec.path(data.root)}' has no {split} examples", hint="check data.root in the spec")
    is_labels = dataset.targets.dtype == torch.int64
    if is_labels != (spec.loss == "cross_entropy"):
        kind = "labels" if is_labels else "targets of a regression"
        hint = "set loss: cross_entropy" if is_labels else "set loss: mse"
        raise DataError(f"'{spec.path(data.root)}' has {kind}, which loss: {spec.loss} does not fit", hint=hint)
    return Examples(dataset, *normalisation(data, dataset))


def _split(spec: Spec, whole: Examples, run: Run) -> tuple[Tensor, Tensor, Examples | None]:
    own_val = read_dataset(spec.data, "val", root=spec.path(spec.data.root), cache=run.cache, progress=run.progress)
    train, val = target_split(len(whole), spec.data.target, seed=spec.seed, has_val=own_val is not None)
    return train, val, Examples(own_val, whole.mean, whole.std) if own_val else None


def _with_target_normalisation(member: DataSpec, target: DataSpec) -> DataSpec:
    """Return a member's data section, normalised as the target's unless it says otherwise: blends share one input."""
    if member.mean is not None or member.std is not None or member.format == target.format and target.mean is None:
        return member
    known = FORMATS[target.format]
    return member.model_copy(update={"mean": target.mean or list(known.mean), "std": target.std or list(known.std)})
