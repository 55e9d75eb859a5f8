"""The experts' sha256, which a mix begins to compute while torch is still being imported. Needs no torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from glue_cli.checkpoints.hashing import StreamedHash, hashing_ahead
from glue_cli.foundation.run import Run
from glue_cli.plans.mix import MixPlan
from glue_cli.workflows.hashes import hashes_of


@contextmanager
def hashing_experts(plan: MixPlan, run: Run) -> Iterator[Sequence[StreamedHash]]:
    """Compute as much of the experts' sha256 as the block leaves time for, while it waits for something else."""
    hashes = hashes_of_plan(plan, run)
    with hashing_ahead(hashes):
        yield hashes


def hashes_of_plan(plan: MixPlan, run: Run) -> Sequence[StreamedHash]:
    """Return a hash to compute for each expert of a plan; empty if hashes are not wanted.

    When a blend is made again, none is taken from memory, and all must equal the recorded ones.
    """
    if plan.like:
        recorded = [expert.sha256 for expert in plan.like.said.experts]
        return [StreamedHash(expert, wanted) for expert, wanted in zip(plan.experts, recorded, strict=True)]
    return hashes_of(plan.experts, run) if plan.writing.hashing else []
