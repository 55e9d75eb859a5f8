"""The names of a checkpoint's classes, and which names in two lists mean the same class. Needs no torch."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from unicodedata import normalize

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.json_files import read_object

_PLACEHOLDER = re.compile(r"LABEL_\d+")  # written by transformers when the classes have no names
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
TRUTHS = ("false", "true")  # the names of labels that are truths, by their numbers
_TRUTHS = {"no": "false", "n": "false", "yes": "true", "y": "true"}  # other words for them
_LISTED = 20  # the most names in a message


def class_names_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of a checkpoint's classes, in the order of its outputs; empty if they are not known.

    They are in glue's metadata, or in the `config.json` of the model's folder: as `id2label` by transformers, or as
    `label_names` by timm. The placeholders of transformers (LABEL_0, LABEL_1) do not count as names.
    """
    said = checkpoint.glue.get("class_names")
    names = tuple(map(str, said)) if isinstance(said, list) else ()
    if not names and (folder := checkpoint.model_folder):
        config = read_object(folder / "config.json")
        names = _numbered(config.get("id2label")) or _numbered(config.get("label_names"))
    return () if all(map(_PLACEHOLDER.fullmatch, names)) else names


def match_classes(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """Return the index in `among` of each of `names`, [n], as `match_spellings` does.

    If one side has only whole numbers and the other side only words, the numbers are the indices of the classes.
    """
    if all(map(is_number, names)) and not any(map(is_number, among)):
        return [int(name) if int(name) < len(among) else None for name in names]
    if is_numbering(among) and not any(map(is_number, names)):
        return [place if place < len(among) else None for place in range(len(names))]
    if tuple(names) == TRUTHS:
        among = [_TRUTHS.get(name.casefold(), name) for name in among]
    return match_spellings(names, among)


def match_spellings(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """Return the index in `among` of each of `names`, [n]; None for a name that is missing or repeated."""
    if tuple(names) == tuple(among):
        return list(range(len(names)))  # even if a name is repeated
    by_spelling = [_look_up(names, among, spelling) for spelling in (str, composed, _plain)]
    return max(by_spelling, key=lambda places: sum(place is not None for place in places))


def are_same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Tell whether two lists name the same classes in the same order."""
    return len(names) == len(others) and match_classes(names, others) == list(range(len(names)))


def is_numbering(names: Sequence[str]) -> bool:
    """Tell whether each name is only the number of its class."""
    return all(name == str(number) for number, name in enumerate(names))


def is_number(name: str) -> bool:
    """Tell whether a name is a class number as text; 007 and numbers of more than 10 digits are not."""
    return bool(_NUMBER.fullmatch(name))


def listed(names: Sequence[str]) -> str:
    """Return names as text for a message, shortened if there are many."""
    more = f", ... ({len(names):,} in all)" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _numbered(names: object) -> tuple[str, ...]:
    """Return the names in a list, or in a dict whose keys are the numbers from 0 on; empty for anything else."""
    if isinstance(names, list):
        return tuple(map(str, names))
    if isinstance(names, dict) and names.keys() == {str(number) for number in range(len(names))}:
        return tuple(str(names[str(number)]) for number in range(len(names)))
    return ()


def composed(name: str) -> str:
    """Return a name with one character a letter, accent and all, where Unicode also has it as two."""
    return normalize("NFC", name)


def _plain(name: str) -> str:
    return composed(name).casefold().strip().replace(" ", "_").replace("-", "_")


def _look_up(names: Sequence[str], among: Sequence[str], spelling: Callable[[str], str]) -> list[int | None]:
    spelt, known = [spelling(name) for name in names], [spelling(name) for name in among]
    n_spelt, n_known = Counter(spelt), Counter(known)
    places = {name: place for place, name in enumerate(known)}
    return [places[name] if n_spelt[name] == n_known[name] == 1 else None for name in spelt]
