"""Find a model's blocks by its tensors' names: members of repeated submodules, and what comes before and after."""

import re
from collections import Counter
from collections.abc import Iterable

_MEMBER = re.compile(r"(.*?)\.(\d+)\.(.*)")
_ALIKE = 2  # so many tensor names, at least, are shared by the members of a repeated submodule
# Few labels cannot determine more blocks than this: of a ViT's 12, neighbours are merged.
MOST_BLOCKS = 8


def find_blocks(names: Iterable[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Assign tensors to blocks, in the order of the model.

    If there are more than `MOST_BLOCKS`, neighbours are merged.

    Args:
        names: the tensors' names in file order, which is that of the model or the alphabet: `layers.0.conv.weight`.
    Returns:
        The blocks' names, and for each tensor the position of its block among them.
    """
    names = list(names)
    repeated = _repeated(names)
    keys: list[str] = []
    for name in names:
        member = _member(name, repeated)
        if member:
            keys.append(member)
        else:  # joins the block before it, unless that is a member
            goes_on = bool(keys) and keys[-1].rpartition(".")[0] not in repeated
            keys.append(keys[-1] if goes_on else name.rpartition(".")[0] or name)
    order = _in_order_of_numbers(list(dict.fromkeys(keys)), repeated)
    n_blocks = min(len(order), MOST_BLOCKS)
    block_of = {key: number * n_blocks // len(order) for number, key in enumerate(order)}
    members: list[list[str]] = [[] for _ in range(n_blocks)]
    for key, block in block_of.items():
        members[block].append(key)
    titles = tuple(
        block_keys[0] if len(block_keys) == 1 else f"{block_keys[0]} to {block_keys[-1]}" for block_keys in members
    )
    return titles, {name: block_of[key] for name, key in zip(names, keys, strict=True)}


def _in_order_of_numbers(keys: list[str], repeated: set[str]) -> list[str]:
    """Return the blocks with the members of each submodule in numerical order: alphabetically, 10 comes before 2."""
    ordered = list(keys)
    for module in repeated:
        places = [i for i, key in enumerate(keys) if key.rpartition(".")[0] == module]
        members = sorted((keys[i] for i in places), key=lambda key: int(key.rpartition(".")[2]))
        for place, member in zip(places, members, strict=True):
            ordered[place] = member
    return ordered


def _member(name: str, repeated: set[str]) -> str | None:
    """Return the member of a repeated submodule that a tensor belongs to, `layers.0`; None for any other tensor."""
    parts = _MEMBER.fullmatch(name)
    return f"{parts[1]}.{parts[2]}" if parts and parts[1] in repeated else None


def _repeated(names: Iterable[str]) -> set[str]:
    """Return the submodules whose numbered members are alike: some tensor names occur in all of them.

    For names with several parts, such as `conv.0.weight`, half of the members are enough: such members are more than
    single layers, and the first and last of them may be different, as in MobileNet's `features`.
    """
    members: dict[str, dict[str, set[str]]] = {}
    for name in names:
        if parts := _MEMBER.fullmatch(name):
            members.setdefault(parts[1], {}).setdefault(parts[2], set()).add(parts[3])
    return {module for module, inner in members.items() if len(inner) > 1 and _are_alike([*inner.values()])}


def _are_alike(members: list[set[str]]) -> bool:
    counts = Counter(name for member in members for name in member)
    in_all = [name for name, count in counts.items() if count == len(members)]
    in_half = [name for name, count in counts.items() if "." in name and count >= len(members) / 2 and count > 1]
    return max(len(in_all), len(in_half)) >= _ALIKE


def find_members(names: Iterable[str]) -> list[str]:
    """Return the members of the outermost repeated submodules, such as `layers.0`, in the order of the names."""
    names = list(names)
    repeated = _repeated(names)
    members = (_member(name, repeated) for name in names)
    found = list(dict.fromkeys(member for member in members if member))
    return [member for member in found if not any(member.startswith(f"{other}.") for other in found)]
