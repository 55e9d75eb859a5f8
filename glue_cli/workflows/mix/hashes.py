"""The experts' sha256, which a mix begins to take before torch is there. Needs no torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from glue_cli.checkpoints.hashing import StreamedHash, hashing_ahead
from glue_cli.plans.mix import MixPlan


def hashes_of(plan: MixPlan) -> Sequence[StreamedHash]:
    """Return a hash to be taken of each expert of a plan; none where they are not wanted.

    Those of a blend that is made again have to be the recorded ones.
    """
    if plan.like:
        recorded = [expert.sha256 for expert in plan.like.said.experts]
        return [StreamedHash(expert, wanted) for expert, wanted in zip(plan.experts, recorded, strict=True)]
    return [StreamedHash(expert) for expert in plan.experts] if plan.writing.hashing else []


@contextmanager
def hashing_experts(plan: MixPlan) -> Iterator[Sequence[StreamedHash]]:
    """Take the experts' sha256, as far as they come, while the block waits for something else."""
    hashes = hashes_of(plan)
    with hashing_ahead(hashes):
        yield hashes
