"""How the target's labels are shared out between searching for alpha and judging the result."""

from dataclasses import dataclass

import torch

from glue_cli.data.loader import Examples
from glue_cli.data.target import Target
from glue_cli.foundation.seeds import generator
from glue_cli.results.blend import Sample
from glue_cli.running.device import Compute
from glue_cli.search.held_out import FixedBatches, Part
from glue_cli.search.objective import Minibatches
from glue_cli.spec.goal import Goal
from glue_cli.spec.schema import MixSpec

# With up to this many labels, training and validation together, folds use all of them both to search and to judge: of
# 25 to 400 labels, a fifth is too few to choose by, and too many for the search to lose.
_FEW = 512
_N_FOLDS = 5
# BatchNorm statistics are taken from this many examples: four minibatches of the usual size. The loss is then .02 to
# .03 above that with 4,096 examples, with 512 .005 (examples/benchmarks/refresh.py); but with a budget of 100 forwards
# the guard could not pay for twice as many.
_REFRESHING = 256
OF_TRAIN: Sample = "some of train"
OF_ALL: Sample = "some of train and val"


@dataclass(frozen=True)
class Labels:
    """The target's labels as a search uses them.

    Attributes:
        parts: what blends are judged on.
        refreshing: the batches that a written blend's statistics are taken from; sample: which examples these are.
        validation: the batches that a written blend's loss is measured on.
    """

    minibatches: Minibatches
    parts: list[Part]
    refreshing: FixedBatches
    validation: FixedBatches
    sample: Sample


def share_out(target: Target, goal: Goal, settings: MixSpec, compute: Compute, *, seed: int, may_fold: bool) -> Labels:
    """Share out the target's training and validation examples.

    Args:
        may_fold: whether the search can leave out folds; if not, it uses training data, and validation data judge.
    """
    train, val = target["train"], target["val"]
    validation = batches_of(val, validation_size(goal, settings, len(val)), compute, seed)
    if may_fold and 1 < len(train) + len(val) <= _FEW:
        pool = train.joined(val)
        whole = batches_of(pool, settings.batch_size, compute, seed)
        parts = _folds(pool, settings.batch_size, compute, seed)
        minibatches = _minibatches(pool, whole, settings, compute, seed, len(parts))
        return Labels(minibatches, parts, _some_of(pool, settings.batch_size, compute, seed), validation, OF_ALL)
    refreshing = _some_of(train, settings.batch_size, compute, seed)
    minibatches = _minibatches(train, validation, settings, compute, seed, n_folds=1)
    return Labels(minibatches, [Part(validation, refreshing)], refreshing, validation, OF_TRAIN)


def validation_size(goal: Goal, settings: MixSpec, n_examples: int) -> int:
    """Return the size of a validation batch; if a batch yields a single term, small enough for four batches."""
    return settings.batch_size if goal.has_example_terms else min(settings.batch_size, -(-n_examples // 4))


def _minibatches(
    examples: Examples, validation: FixedBatches, settings: MixSpec, compute: Compute, seed: int, n_folds: int
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
    """Return one part for each fold: every fifth example is judged with what the other examples give."""
    places, n_folds = torch.arange(len(pool)), min(_N_FOLDS, len(pool))
    return [
        Part(
            batches_of(pool.subset(places[places % n_folds == fold]), batch_size, compute, seed),
            _some_of(pool.subset(places[places % n_folds != fold]), batch_size, compute, seed),
        )
        for fold in range(n_folds)
    ]


def sampled(target: Target, sample: Sample) -> Examples:
    """Return the examples that a sample is drawn from."""
    return target["train"].joined(target["val"]) if sample == OF_ALL else target["train"]


def refreshing_batches(target: Target, sample: Sample, batch_size: int, compute: Compute, seed: int) -> FixedBatches:
    """Return the batches from which a search took statistics."""
    return _some_of(sampled(target, sample), batch_size, compute, seed)


def _some_of(examples: Examples, batch_size: int, compute: Compute, seed: int) -> FixedBatches:
    """Draw examples at random, and return them in the batches that statistics are taken from."""
    chosen = torch.randperm(len(examples), generator=generator(seed, "refresh"))[:_REFRESHING]
    return batches_of(examples.subset(chosen), batch_size, compute, seed)


def batches_of(examples: Examples, batch_size: int, compute: Compute, seed: int) -> FixedBatches:
    """Return the examples in batches of about equal size, the same batches each time."""
    on_device = examples.on(compute)
    return FixedBatches(lambda: on_device.in_random_order(batch_size, seed), on_device.n_in_random_order(batch_size))
