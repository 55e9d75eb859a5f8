"""Match different names of the same tensors: with prefixes of wrappers, with old parametrisations. Needs no torch."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable

# Inserted by torch.compile, FSDP and activation checkpointing, at the place of the wrapped module.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARALLEL = "module."  # added before all names by DataParallel and DistributedDataParallel, once for each wrapper
# Names by torch.nn.utils.parametrizations, and the older ones by torch.nn.utils.weight_norm and spectral_norm.
_PARAMETRISATIONS = [
    (re.compile(rf"(?<![^.])parametrizations\.(\w+)\.{new}$"), rf"\1_{old}")
    for new, old in (("original0", "g"), ("original1", "v"), ("original", "orig"), (r"0\._u", "u"), (r"0\._v", "v"))
]


def align_names(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Match names of the same tensors that are spelt differently.

    Additions by wrappers are ignored, old and new names of parametrisations are equal, and all names of one side may
    have a prefix that the other side lacks, such as the `model.` of a Lightning module.

    Returns:
        the name in `wanted` for each of `names` that has a match. Empty if the match is ambiguous: several names or
        several prefixes fit equally well.
    """
    found = _aligned(names, wanted, without_wrappers)
    if len(found) == len(wanted) or not any(name.startswith(_PARALLEL) for name in wanted):
        return found
    # The model has a submodule that is called as DataParallel's addition.
    return max(found, _aligned(names, wanted, _without_inserted), key=len)


def _aligned(names: Collection[str], wanted: Collection[str], unwrapped: Callable[[str], str]) -> dict[str, str]:
    theirs, ours = ({_plain(unwrapped(name)): name for name in side} for side in (names, wanted))
    if len(theirs) < len(names) or len(ours) < len(wanted):
        return {}
    excess, lack = _common_prefix(theirs, ours), _common_prefix(ours, theirs)
    if excess is None or lack is None:
        return {}
    longer, shorter = (excess, "") if excess else ("", lack)
    return {
        name: ours[partner]
        for plain, name in theirs.items()
        if plain.startswith(longer) and (partner := shorter + plain.removeprefix(longer)) in ours
    }


def without_wrappers(name: str) -> str:
    """Return a name without the additions by torch's own wrappers."""
    name = _without_inserted(name)
    while name.startswith(_PARALLEL):
        name = name.removeprefix(_PARALLEL)
    return name


def _without_inserted(name: str) -> str:
    return _WRAPPERS.sub("", name)


def _plain(name: str) -> str:
    for pattern, spelling in _PARAMETRISATIONS:
        name = pattern.sub(spelling, name)
    return name


def _common_prefix(longer: Iterable[str], shorter: Collection[str]) -> str | None:
    """Return the prefix whose removal leaves most of `longer` in `shorter`; None if several are equally good."""
    counts = Counter(
        name[:end]
        for name in longer
        for end in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[end:] in shorter
    )
    most = [prefix for prefix, n in counts.items() if n == max(counts.values())]
    return "" if "" in most or not most else most[0] if len(most) == 1 else None
