"""Find tied tensors: copies under a second name, such as a language model's head and its embedding. Needs no torch.

Some tools write such a tensor once and some twice, so that only some of otherwise equal experts may have the copy.
A model reads one of the copies for all, so all have to be blended alike.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from glue_cli.blend.recipe import matches
from glue_cli.checkpoints.files import read_blocks, read_start, same_bytes
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, TensorEntry

# Names of the heads and embeddings of language models.
_HEADS = ("*lm_head.weight", "*lm_head.decoder.weight", "*embed_out.weight", "*predictions.decoder.weight")
_EMBEDDINGS = ("*embed_tokens.weight", "*word_embeddings.weight", "*wte.weight", "*embed_in.weight", "*shared.weight")
_LEAST_ELEMENTS = 2  # single numbers may be equal by chance
_START_BYTES = 256


@dataclass(frozen=True)
class TiedCopies:
    """Tensors that only some experts have, and that are copies of another tensor there.

    Attributes:
        experts: the experts; each copy that the first expert has is added to those that lack it.
        of: for the name of each copy, the tensor that it is a copy of.
    """

    experts: tuple[Checkpoint, ...]
    of: dict[str, str]


def find_tied_copies(experts: Sequence[Checkpoint], names: Sequence[str]) -> TiedCopies:
    """Find which tensors that only some experts have are copies of a tensor that all experts have.

    Args:
        names: tensors that at least one expert lacks.
    Cost: reads these tensors and others of the same shape, up to the first difference.
    """
    originals = {name: original for name in names if (original := _original_of(name, experts))}
    first, *others = experts
    completed = []
    for expert in others:
        own = expert.entries
        copies = {
            name: own[original]._replace(name=name)
            for name, original in originals.items()
            if name in first.entries and name not in own
        }
        completed.append(replace(expert, entries={**own, **copies}) if copies else expert)
    return TiedCopies((first, *completed), originals)


def _original_of(name: str, experts: Sequence[Checkpoint]) -> str | None:
    """Return a tensor in all experts that this one equals wherever it occurs; None if there is none, or in doubt."""
    having = [expert for expert in experts if name in expert.entries]
    copy = having[0].entries[name]
    if copy.n_elements < _LEAST_ELEMENTS or _is_constant(having[0], copy):
        return None
    for other in having[0].entries.values():
        if other.name != name and (other.dtype, other.shape) == (copy.dtype, copy.shape):
            everywhere = all(other.name in expert.entries for expert in experts)
            if everywhere and all(_is_copy(name, other.name, expert) for expert in having):
                return other.name
    return None


def find_copies(experts: Sequence[Checkpoint], names: Iterable[str]) -> Iterator[list[str]]:
    """Yield the tensors that are copies of each other in every expert, and are not the same in all experts.

    Args:
        names: tensors among which they are looked for.
    Cost: reads the start of each tensor that has the shape of another, and all of those that start alike.
    """
    first, *others = experts
    alike: dict[object, list[str]] = {}
    for name in names:
        entry = first.entries[name]
        if entry.dtype in FLOAT_DTYPES and entry.n_elements >= _LEAST_ELEMENTS:
            alike.setdefault((entry.dtype, entry.shape), []).append(name)
    by_start: dict[object, list[str]] = {}
    for key, members in alike.items():
        for name in members if len(members) > 1 else ():
            by_start.setdefault((key, read_start(first, first.entries[name], _START_BYTES)), []).append(name)
    by_content: dict[object, list[str]] = {}
    for key, members in by_start.items():
        for name in members if len(members) > 1 else ():
            by_content.setdefault((key, _digest(first, name)), []).append(name)
    for members in by_content.values():
        while len(members) > 1:
            name, *rest = members
            entry = first.entries[name]
            copies = [other for other in rest if all(_is_copy(name, other, expert) for expert in experts)]
            if copies and not all(same_bytes(first, entry, other, other.entries[name]) for other in others):
                yield [name, *copies]
            members = [other for other in rest if other not in copies]


def _digest(expert: Checkpoint, name: str) -> bytes:
    digest = sha256()
    for block in read_blocks(expert, expert.entries[name]):
        digest.update(block)
    return digest.digest()


def heads_are_copies(experts: Sequence[Checkpoint]) -> bool:
    """Tell whether the experts have language models' heads and each is a copy of an embedding of the same expert."""
    heads = [(expert, name) for expert in experts for name in expert.entries if matches(name, _HEADS)]
    return bool(heads) and all(
        any(_is_copy(head, name, expert) for name in expert.entries if matches(name, _EMBEDDINGS))
        for expert, head in heads
    )


def _is_copy(name: str, other: str, expert: Checkpoint) -> bool:
    one, two = expert.entries.get(name), expert.entries.get(other)
    return one is not None and two is not None and same_bytes(expert, one, expert, two)


def _is_constant(expert: Checkpoint, entry: TensorEntry) -> bool:
    """Tell whether all numbers of a tensor are equal, as in untrained biases and norms, which are no copies."""
    width = entry.n_bytes // entry.n_elements
    first = b""
    for block in read_blocks(expert, entry):
        first = first or block[:width]
        if block != first * (len(block) // width):
            return False
    return True
