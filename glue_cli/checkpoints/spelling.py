"""Names of the same tensors in several spellings: with wrappers' prefixes, old parametrisations. Needs no torch."""

import re
from collections import Counter
from collections.abc import Collection, Iterable

# What torch.compile, FSDP and activation checkpointing put into a name, wherever the wrapped module is.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARALLEL = "module."  # what DataParallel and DistributedDataParallel put before all names, once a wrapper
# torch.nn.utils.parametrizations' names, and those of torch.nn.utils.weight_norm and spectral_norm for the same.
_PARAMETRISATIONS = [
    (re.compile(rf"(?<![^.])parametrizations\.(\w+)\.{new}$"), rf"\1_{old}")
    for new, old in (("original0", "g"), ("original1", "v"), ("original", "orig"), (r"0\._u", "u"), (r"0\._v", "v"))
]


def align_names(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Find the same tensors in two spellings.

    What wrappers add is passed over, old and new names of parametrisations are one, and all names of either side may
    have a prefix that the other side lacks, such as the `model.` of a Lightning module.

    Returns:
        for each of `names` that has a partner, the one of `wanted` that it is. Empty where it is not clear which:
        where several names, or several prefixes, fit alike.
    """
    theirs, ours = {_plain(name): name for name in names}, {_plain(name): name for name in wanted}
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
    """Return a name without what torch's own wrappers of models and modules put into it."""
    name = _WRAPPERS.sub("", name)
    while name.startswith(_PARALLEL):
        name = name.removeprefix(_PARALLEL)
    return name


def _plain(name: str) -> str:
    name = without_wrappers(name)
    for pattern, spelling in _PARAMETRISATIONS:
        name = pattern.sub(spelling, name)
    return name


def _common_prefix(longer: Iterable[str], shorter: Collection[str]) -> str | None:
    """Return the prefix without which most of `longer` are in `shorter`; None where several do alike."""
    counts = Counter(
        name[:end]
        for name in longer
        for end in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[end:] in shorter
    )
    most = [prefix for prefix, n in counts.items() if n == max(counts.values())]
    return "" if "" in most or not most else most[0] if len(most) == 1 else None
