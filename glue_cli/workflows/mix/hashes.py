"""The experts' sha256, which a mix begins to compute while torch is still being imported. Needs no torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from glue_cli.checkpoints.digests import Digests
from glue_cli.checkpoints.hashing import StreamedHash, hashing_ahead
from glue_cli.foundation.errors import ResourceError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.plans.mix import MixPlan


def hashes_of(plan: MixPlan, run: Run) -> Sequence[StreamedHash]:
    """Return a hash to compute for each expert of a plan; empty if hashes are not wanted.

    A hash that is remembered of the same, unchanged files is not computed again, and the user is told so. When a blend
    is made again, all are computed, and must equal the recorded ones.
    """
    if plan.like:
        recorded = [expert.sha256 for expert in plan.like.said.experts]
        return [StreamedHash(expert, wanted) for expert, wanted in zip(plan.experts, recorded, strict=True)]
    if not plan.writing.hashing:
        return []
    remembered = Digests(run.cache).read()
    hashes = [StreamedHash(expert, remembered=remembered) for expert in plan.experts]
    if n_known := sum(streamed.is_remembered for streamed in hashes):
        text = f"sha256 of {n_known} of {len(hashes)} experts as remembered: their files have not changed since"
        run.progress(Noted(text))
    return hashes


def remember(hashes: Sequence[StreamedHash], run: Run) -> None:
    """Remember finished hashes for the next run; a failure to write them is only reported."""
    found: dict[str, str] = {}
    for streamed in hashes:
        found |= streamed.worth_remembering()
    try:
        Digests(run.cache).add(found)
    except ResourceError as error:
        run.progress(Noted(f"the experts' sha256 are not remembered: {error.message}", warning=True))


@contextmanager
def hashing_experts(plan: MixPlan, run: Run) -> Iterator[Sequence[StreamedHash]]:
    """Compute as much of the experts' sha256 as the block leaves time for, while it waits for something else."""
    hashes = hashes_of(plan, run)
    with hashing_ahead(hashes):
        yield hashes
