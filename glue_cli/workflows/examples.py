"""The examples that a command works on: which parts of which data set, and their batches on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from glue_cli.core.device import Compute
from glue_cli.core.errors import DataError, SpecError
from glue_cli.core.forward import Batch
from glue_cli.core.progress import Noted
from glue_cli.core.seeds import generator
from glue_cli.core.spec import AugmentSpec, DataSpec, Spec
from glue_cli.data import check_format, normalisation, read_dataset
from glue_cli.data.batches import (
    batches_by_length,
    bucketed_batches,
    crop,
    epoch_batches,
    flip,
    normalise,
    token_batch,
)
from glue_cli.data.dataset import Dataset, Ragged
from glue_cli.data.partition import dirichlet_share, draw_val, free_indices, target_split
from glue_cli.workflows.plan import Run

_EVALUATION_BATCH = 250
_EVALUATION_TOKENS = 4096  # the outputs of a language model with 50,000 tokens are then 0.8 GB


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
    """Batches of examples on the device: float32, normalised, in the run's memory format; or texts, padded."""

    def __init__(self, examples: Examples, compute: Compute) -> None:
        self._device = compute.device
        self._dataset = examples.dataset.to(compute.device)
        self._normalise = partial(normalise, mean=examples.mean, std=examples.std, channels_last=compute.channels_last)

    def __len__(self) -> int:
        return len(self._dataset)

    def pick(self, indices: Tensor, augment: AugmentSpec | None = None, draws: torch.Generator | None = None) -> Batch:
        """Return the examples at `indices`, int64 [n], on the CPU, augmented when asked."""
        inputs, targets = self._dataset.inputs, self._dataset.targets
        if isinstance(inputs, Ragged):
            tokens, wanted = token_batch(inputs[indices], targets[indices])
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
        return len(self._parts(_EVALUATION_BATCH))

    def in_order(self, batch_size: int = _EVALUATION_BATCH) -> Iterator[Batch]:
        """Yield all examples in order, for evaluation; texts from the longest to the shortest."""
        for indices in self._parts(batch_size):
            yield self.pick(indices)

    def _parts(self, batch_size: int) -> Sequence[Tensor]:
        inputs = self._dataset.inputs
        if isinstance(inputs, Ragged):
            return list(batches_by_length(inputs.lengths, batch_size, _EVALUATION_TOKENS))
        return torch.split(torch.arange(len(self)), batch_size)

    def in_random_order(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yield all examples, in parts of like size, so that the first ones stand for all; the same at every call."""
        draws = generator(seed, "validation")
        if isinstance(self._dataset.inputs, Ragged):
            parts = list(self._parts(batch_size))
            order = torch.randperm(len(parts), generator=draws).tolist()
            yield from (self.pick(parts[i]) for i in order)
        else:
            shuffled = torch.randperm(len(self), generator=draws)
            yield from map(self.pick, torch.tensor_split(shuffled, -(-len(self) // batch_size)))

    def epoch(self, batch_size: int, seed: int, epoch: int, augment: AugmentSpec) -> Iterator[Batch]:
        """Yield the examples in the random order of one epoch, a pure function of seed and epoch.

        Raises:
            SpecError: `augment` asks for what only images have.
        """
        inputs = self._dataset.inputs
        order, draws = generator(seed, "order", epoch), generator(seed, "augment", epoch)
        single_left = len(self) % batch_size == 1 and len(self) > 1  # BatchNorm has no statistics of one example
        if (augment.crop or augment.flip) and (isinstance(inputs, Ragged) or inputs.dim() != 4):
            raise SpecError("augment crops and flips images, but the data are none", hint="remove it from the spec")
        if isinstance(inputs, Ragged):
            batches = bucketed_batches(inputs.lengths, batch_size, order, drop_last=single_left)
        else:
            batches = epoch_batches(len(self), batch_size, order, drop_last=single_left)
        for indices in batches:
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
        return _read(spec, _like_target(spec.experts.members[expert].data, spec.data), "train", run)
    assert spec.experts.size is not None
    whole = _read(spec, spec.data, "train", run)
    train, val, _ = _split(spec, whole, run)
    labels = whole.dataset.labels
    if labels is None:
        raise SpecError(
            "experts.dirichlet shares the data by class, but this data set has no labels",
            hint="give each expert data of its own in experts.members",
        )
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
        run.progress(Noted(f"{which} {lack}; other classes make up for them"))
    return whole.subset(share.indices)


def _read(spec: Spec, data: DataSpec, split: str, run: Run) -> Examples:
    examples = _find(spec, data, split, run)
    assert examples is not None
    return examples


def _find(spec: Spec, data: DataSpec, split: str, run: Run) -> Examples | None:
    """Read a split, or return None for a val split that is not there."""
    root = spec.path(data.root)
    dataset = read_dataset(
        data,
        split,
        root=root,
        folder=spec.path("."),
        tokenizer=_tokenizer_folder(spec),
        cache=run.cache,
        progress=run.progress,
    )
    if dataset is None:
        return None
    where = f"'{root if data.root else data.where}'"
    if len(dataset) == 0:
        raise DataError(f"{where} has no {split} examples", hint="check data.root in the spec")
    kind, loss = "labels", "cross_entropy"
    if dataset.labels is None:
        is_text = isinstance(dataset.targets, Ragged)
        kind, loss = ("texts alone", "cross_entropy") if is_text else ("targets of a regression", "mse")
    if loss != spec.loss:
        raise DataError(f"{where} has {kind}, which loss: {spec.loss} does not fit", hint=f"set loss: {loss}")
    return Examples(dataset, *normalisation(data, dataset))


def _tokenizer_folder(spec: Spec) -> Path | None:
    """Return the folder of a model of transformers, which has the tokenizer too."""
    path = spec.model.args.get("path")
    return spec.path(path) if spec.model.arch.startswith("transformers:") and isinstance(path, str) else None


def _split(spec: Spec, whole: Examples, run: Run) -> tuple[Tensor, Tensor, Examples | None]:
    """Return the indices of the target's training and validation examples, and its own val split if it has one."""
    target, own_val = spec.data.target, _find(spec, spec.data, "val", run)
    train, val = target_split(len(whole), target, seed=spec.seed, has_val=own_val is not None)
    if own_val and target.val is not None:
        own_val = own_val.subset(draw_val(len(own_val), target.val, seed=spec.seed))
    return train, val, own_val


def _like_target(member: DataSpec, target: DataSpec) -> DataSpec:
    """Return a member's data section with the target's normalisation and length of texts, unless it says otherwise.

    A blend has one kind of input.
    """
    updates: dict[str, object] = {}
    own, known = check_format(member.format), check_format(target.format)
    mean, std = target.mean or list(known.mean), target.std or list(known.std)
    if member.mean is None and member.std is None and (tuple(mean), tuple(std)) != (own.mean, own.std):
        updates |= {"mean": mean, "std": std}
    if member.max_length is None and "max_length" in own.takes:
        updates["max_length"] = target.max_length
    return member.model_copy(update=updates)
