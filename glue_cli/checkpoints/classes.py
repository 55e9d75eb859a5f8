"""The names of a checkpoint's classes, and which of two lists of names stand for the same classes. Needs no torch."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.json_files import read_object

_PLACEHOLDER = re.compile(r"LABEL_\d+")  # what transformers writes where nobody has named the classes
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_LISTED = 20  # names in a message


def class_names_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the names of a checkpoint's classes, in the order of its outputs; none where it does not say them.

    They are in glue's metadata, or in the `config.json` of the model's folder: `id2label`, as transformers has them,
    or `label_names`, as timm does. transformers' placeholders (LABEL_0, LABEL_1) are no names.
    """
    said = checkpoint.glue.get("class_names")
    names = tuple(map(str, said)) if isinstance(said, list) else ()
    if not names and (folder := checkpoint.model_folder):
        config = read_object(folder / "config.json")
        names = _numbered(config.get("id2label")) or _numbered(config.get("label_names"))
    return () if all(map(_PLACEHOLDER.fullmatch, names)) else names


def match_classes(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """Return the place in `among` of each of `names`, [n], as `match_spellings` does.

    Names that are whole numbers say which class is meant where the other side's are words.
    """
    if all(map(is_number, names)) and not any(map(is_number, among)):
        return [int(name) if int(name) < len(among) else None for name in names]
    if is_numbering(among) and not any(map(is_number, names)):
        return [place if place < len(among) else None for place in range(len(names))]
    return match_spellings(names, among)


def match_spellings(names: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """Return the place in `among` of each of `names`, [n]; None for one that is not there, or not once.

    Names are compared as they are or, if more of them are then found, with no regard to upper case, spaces, hyphens
    and underscores.
    """
    if tuple(names) == tuple(among):
        return list(range(len(names)))  # even if a name is there twice
    found = [_look_up(names, among, spelling) for spelling in (str, _plain)]
    return max(found, key=lambda places: sum(place is not None for place in places))


def are_same_classes(names: Sequence[str], others: Sequence[str]) -> bool:
    """Tell whether two lists name the same classes in the same order."""
    return len(names) == len(others) and match_classes(names, others) == list(range(len(names)))


def is_numbering(names: Sequence[str]) -> bool:
    """Tell whether each name is but the number of its class."""
    return all(name == str(number) for number, name in enumerate(names))


def is_number(name: str) -> bool:
    """Tell whether a name is a class's number in quotes; 007 is a name, and so are too many digits."""
    return bool(_NUMBER.fullmatch(name))


def listed(names: Sequence[str]) -> str:
    """Return names as a message has them; of many the first."""
    more = f", ... ({len(names):,} in all)" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _numbered(found: object) -> tuple[str, ...]:
    """Return the names in a list, or in an object whose keys are the numbers from 0 on; none in anything else."""
    if isinstance(found, list):
        return tuple(map(str, found))
    if isinstance(found, dict) and found.keys() == {str(number) for number in range(len(found))}:
        return tuple(str(found[str(number)]) for number in range(len(found)))
    return ()


def _plain(name: str) -> str:
    return name.casefold().strip().replace(" ", "_").replace("-", "_")


def _look_up(names: Sequence[str], among: Sequence[str], spelling: Callable[[str], str]) -> list[int | None]:
    spelt, known = [spelling(name) for name in names], [spelling(name) for name in among]
    n_spelt, n_known = Counter(spelt), Counter(known)
    places = {name: place for place, name in enumerate(known)}
    return [places[name] if n_spelt[name] == n_known[name] == 1 else None for name in spelt]
