"""How the target's labels are shared out between finding alpha and judging what was found."""

from dataclasses import dataclass

import torch

from glue_cli.data.loader import Examples
from glue_cli.data.target import Target
from glue_cli.foundation.seeds import generator
from glue_cli.results.blend import Sample
from glue_cli.running.device import Compute
from glue_cli.search.held_out import Batches, Part
from glue_cli.search.objective import Minibatches
from glue_cli.spec.goal import Goal
from glue_cli.spec.schema import MixSpec

# Up to as many labels, training and validation together, all are searched and all judge, by folds: of 25 to 400 a
# share of a fifth for validation is too few to choose by, and too many to do without.
_FEW = 512
_N_FOLDS = 5
# Of so many examples BatchNorm's statistics are taken, of four minibatches of the usual size.
_REFRESHING = 256
OF_TRAIN: Sample = "some of train"
OF_ALL: Sample = "some of train and val"


@dataclass(frozen=True)
class Labels:
    """The target's labels as a search uses them.

    Attributes:
        parts: what blends are judged on.
        refreshing: what the statistics of a written blend are taken from; sample: which examples these are.
        validation: what the loss of a written blend is of.
    """

    minibatches: Minibatches
    parts: list[Part]
    refreshing: Batches
    validation: Batches
    sample: Sample

    @property
    def is_in_folds(self) -> bool:
        return self.minibatches.n_folds > 1


def share_out(target: Target, goal: Goal, settings: MixSpec, compute: Compute, *, seed: int, may_fold: bool) -> Labels:
    """Share out the target's training and validation examples.

    Args:
        may_fold: whether the search can leave out folds; else it has the training data, and validation data judge.
    """
    train, val = target["train"], target["val"]
    validation = _batches(val, validation_size(goal, settings, len(val)), compute, seed)
    if may_fold and 1 < len(train) + len(val) <= _FEW:
        pool = train.joined(val)
        whole = _batches(pool, settings.batch_size, compute, seed)
        parts = _folds(pool, settings.batch_size, compute, seed)
        minibatches = _minibatches(pool, whole, settings, compute, seed, len(parts))
        return Labels(minibatches, parts, _some_of(pool, settings.batch_size, compute, seed), validation, OF_ALL)
    refreshing = _some_of(train, settings.batch_size, compute, seed)
    minibatches = _minibatches(train, validation, settings, compute, seed, n_folds=1)
    return Labels(minibatches, [Part(validation, refreshing)], refreshing, validation, OF_TRAIN)


def validation_size(goal: Goal, settings: MixSpec, n_examples: int) -> int:
    """Return how many examples a validation batch has; few enough for four, where a batch has one term in all."""
    return settings.batch_size if goal.has_example_terms else min(settings.batch_size, -(-n_examples // 4))


def _minibatches(
    examples: Examples, validation: Batches, settings: MixSpec, compute: Compute, seed: int, n_folds: int
) -> Minibatches:
    on_device = examples.on(compute)

    def folds(step: int) -> torch.Tensor:
        return on_device.places_at_step(step, settings.batch_size, seed) % n_folds

    return Minibatches(
        at_step=lambda step: on_device.at_step(step, settings.batch_size, seed),
        validation=validation.again,
        n_validation=validation.n,
        n_examples=len(examples),
        folds=folds if n_folds > 1 else None,
        n_folds=n_folds,
    )


def _folds(pool: Examples, batch_size: int, compute: Compute, seed: int) -> list[Part]:
    """Return a part a fold: every fifth example is judged by what the others say."""
    places, n_folds = torch.arange(len(pool)), min(_N_FOLDS, len(pool))
    return [
        Part(
            _batches(pool.subset(places[places % n_folds == fold]), batch_size, compute, seed),
            _some_of(pool.subset(places[places % n_folds != fold]), batch_size, compute, seed),
        )
        for fold in range(n_folds)
    ]


def sampled(target: Target, sample: Sample) -> Examples:
    """Return the examples that a sample is drawn from."""
    return target["train"].joined(target["val"]) if sample == OF_ALL else target["train"]


def refreshing_batches(target: Target, sample: Sample, batch_size: int, compute: Compute, seed: int) -> Batches:
    """Return the batches that statistics were taken from in a search."""
    return _some_of(sampled(target, sample), batch_size, compute, seed)


def _some_of(examples: Examples, batch_size: int, compute: Compute, seed: int) -> Batches:
    """Return the batches that statistics are taken from, of examples that are drawn."""
    chosen = torch.randperm(len(examples), generator=generator(seed, "refresh"))[:_REFRESHING]
    return _batches(examples.subset(chosen), batch_size, compute, seed)


def _batches(examples: Examples, batch_size: int, compute: Compute, seed: int) -> Batches:
    """Return examples in batches of like size, the same each time."""
    on_device = examples.on(compute)
    return Batches(lambda: on_device.in_random_order(batch_size, seed), on_device.n_in_random_order(batch_size))
