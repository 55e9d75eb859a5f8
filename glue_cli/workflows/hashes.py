"""The sha256 of whole experts, remembered from one run to the next. Needs no torch."""

from collections.abc import Sequence

from glue_cli.checkpoints.digests import Digests
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.foundation.errors import ResourceError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run


def hashes_of(experts: Sequence[Checkpoint], run: Run) -> list[StreamedHash]:
    """Return a hash to compute for each expert.

    A hash that is remembered of the same, unchanged files is not computed again, and the user is told so.
    """
    remembered = Digests(run.cache).read()
    hashes = [StreamedHash(expert, remembered=remembered) for expert in experts]
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
