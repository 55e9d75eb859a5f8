"""The sha256 of whole experts, remembered from one run to the next. Needs no torch."""

import os
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


def repeated_files(experts: Sequence[Checkpoint]) -> list[str]:
    """Return a sentence on each expert that is an earlier one's files again; needs no hash."""
    return _repeated(experts, _places(experts), [None] * len(experts))


def repeated_weights(experts: Sequence[Checkpoint], digests: Sequence[str | None]) -> list[str]:
    """Return a sentence on each expert whose files are a copy of an earlier one's, by their sha256 [K] if known."""
    return _repeated(experts, digests, _places(experts))


def _places(experts: Sequence[Checkpoint]) -> list[str]:
    return ["\n".join(map(os.path.realpath, expert.files)) for expert in experts]


def _repeated(experts: Sequence[Checkpoint], marks: Sequence[str | None], known: Sequence[str | None]) -> list[str]:
    """Return a sentence on each expert with the mark of an earlier one, unless what is known tells as much."""
    earlier: dict[tuple[str, str | None], int] = {}
    said = []
    for k, (expert, mark) in enumerate(zip(experts, marks, strict=True)):
        i = earlier.setdefault((mark, expert.weights), k) if mark is not None else k
        if i != k and (known[k] is None or known[i] != known[k]):
            said.append(f"experts {i} and {k} are the same weights: {experts[i].name} and {expert.name}")
    return said
