"""Which weights of a base its adapters update: names, shapes and orientations. Needs no torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glue_cli.blend.adapters.adapter import Adapter, Update, check_adapters
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, TensorEntry
from glue_cli.foundation.errors import CheckpointError

_WEIGHT = ".weight"
FindNames = Callable[[Checkpoint, Mapping[str, Any]], Mapping[str, str]]


@dataclass(frozen=True)
class AdaptedBase:
    """A base checkpoint and the adapters that fit it.

    Attributes:
        base: the base's header, its tensors by their names in the adapted model; where a library has other names for
            them on disk, by these.
        adapters: of one base, checked, with their tensors' names alike.
        transposed: the modules whose weight is [n_in, n_out], or an embedding's [vocabulary, width].
    """

    base: Checkpoint
    adapters: Sequence[Adapter]
    transposed: frozenset[str]

    @property
    def changed(self) -> list[str]:
        """The names of the tensors that any adapter updates or replaces."""
        names = {update.weight for adapter in self.adapters for update in adapter.updates.values()}
        return sorted(names.union(self.adapters[0].plain.entries))

    @property
    def merged(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """The name, dtype and shape of every tensor when the adapters are merged into the base, in its dtypes."""
        entries = {**self.base.entries, **self.adapters[0].plain.entries}
        return [(name, self.base.entries.get(name, entry).dtype, entry.shape) for name, entry in entries.items()]


def fit(base: Checkpoint, adapters: Sequence[Adapter], *, names_in_memory: FindNames | None = None) -> AdaptedBase:
    """Find the weights of a base that adapters update.

    Args:
        names_in_memory: asked where the base's names on disk do not fit: of a base and an adapter's configuration, it
            returns the base's names on disk by those in memory, which adapters go by.
    Raises:
        CheckpointError: the adapters do not fit each other or the base.
    """
    check_adapters(adapters)
    try:
        named = _named_as_adapted(base, adapters)
    except CheckpointError:
        names = names_in_memory(base, adapters[0].config) if names_in_memory else {}
        if not all(names.get(weight, "").endswith(_WEIGHT) for weight in _updated(adapters)):
            raise
        named, adapters = base, [_renamed(adapter, names) for adapter in adapters]
    updates = {update.module: update for adapter in adapters for update in adapter.updates.values()}
    weights = {**named.entries, **adapters[0].plain.entries}
    items = []
    for update in updates.values():
        entry, wanted = weights[update.weight], update.outer_shape
        turned = wanted[::-1] if len(wanted) == 2 and not update.is_embedding else wanted
        if entry.shape not in (wanted, turned) or entry.dtype not in FLOAT_DTYPES:
            items.append(f"'{entry.name}' is {entry.dtype} {list(entry.shape)}, its update is {list(wanted)}")
    if items:
        hint = "name the base that the adapters were trained on, unquantised"
        raise CheckpointError(f"the adapters do not fit '{base.path}'", items=items, hint=hint)
    return AdaptedBase(named, adapters, _transposed(weights, updates, adapters))


def _updated(adapters: Sequence[Adapter]) -> list[str]:
    """Return the weights that any adapter updates."""
    return [*dict.fromkeys(update.weight for adapter in adapters for update in adapter.updates.values())]


def _renamed(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    """Name what an adapter updates and replaces as it is called on disk; `names` has that by the names in memory."""
    modules = {update: names[update.weight].removesuffix(_WEIGHT) for update in adapter.updates.values()}
    plain = {names.get(name, name): entry for name, entry in adapter.plain.entries.items()}
    return replace(
        adapter,
        updates={module: replace(update, module=module) for update, module in modules.items()},
        plain=replace(adapter.plain, entries=plain),
    )


def _named_as_adapted(base: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """Name the base's tensors as the adapted model does, where one has a prefix that the other lacks.

    GPT-2 is published without its head, as `h.0...`, and adapted with one, as `transformer.h.0...`; BERT is published
    with a head, as `bert.encoder...`, and may be adapted without, as `encoder...`.
    """
    wanted, adapter = _updated(adapters), adapters[0]
    lacking, fitting = wanted, {}
    for excess, lack in _prefixes(base, wanted[0]):
        names = (lack + name.removeprefix(excess) for name in base.entries)
        entries = {n: entry._replace(name=n) for n, entry in zip(names, base.entries.values(), strict=True)}
        missing = [name for name in wanted if name not in entries and name not in adapter.plain.entries]
        lacking = min(lacking, missing, key=len)
        if not missing:
            fitting[excess or lack] = entries
    if not fitting:
        hint = f"name the base that the adapters were trained on: '{adapter.config.get('base_model_name_or_path')}'"
        raise CheckpointError(f"'{base.path}' lacks weights that the adapters update", items=lacking, hint=hint)
    if len(fitting) > 1 and "" not in fitting:
        message = f"the adapters fit several parts of '{base.path}'"
        raise CheckpointError(message, items=[f"{prefix}{wanted[0]}" for prefix in fitting])
    return replace(base, entries=fitting[min(fitting)])


def _prefixes(base: Checkpoint, wanted: str) -> Iterator[tuple[str, str]]:
    """Yield what the base's names may have in excess of the adapted model's, or may lack."""
    yield "", ""
    parts = wanted.split(".")
    for n in range(1, len(parts)):
        yield "", ".".join(parts[:n]) + "."
    for name in base.entries:
        if name.endswith("." + wanted):
            yield name.removesuffix(wanted), ""


def _transposed(
    weights: Mapping[str, TensorEntry], updates: Mapping[str, Update], adapters: Sequence[Adapter]
) -> frozenset[str]:
    """Tell which weights are the transpose of b @ a.

    PEFT goes by the layer's class and leaves the last one's setting in the configuration, so that is asked only of
    square weights of which no namesake's shape tells.
    """
    known = {update.module: found for update in updates.values() if (found := _by_shape(weights, update)) is not None}
    by_leaf: dict[str, set[bool]] = {}
    for module, found in (_by_biases(weights) | known).items():
        by_leaf.setdefault(_leaf(module), set()).add(found)
    configs = {bool(adapter.config.get("fan_in_fan_out")) for adapter in adapters}
    unclear = []
    for module in updates.keys() - known.keys():
        votes = by_leaf.get(_leaf(module), configs)
        known[module] = votes == {True}
        if len(votes) > 1:
            unclear.append(module)
    if unclear:
        message = "it is not clear which of these square weights are transposed (fan_in_fan_out)"
        raise CheckpointError(message, items=sorted(unclear), hint="mix these adapters without merging them")
    return frozenset(module for module, found in known.items() if found)


def _by_shape(weights: Mapping[str, TensorEntry], update: Update) -> bool | None:
    if update.is_embedding or len(update.outer_shape) > 2:
        return update.is_embedding
    n_out, n_in = update.outer_shape
    return None if n_out == n_in else weights[update.weight].shape != (n_out, n_in)


def _by_biases(weights: Mapping[str, TensorEntry]) -> dict[str, bool]:
    """Tell of the modules with a bias [n_out] and a weight that is not square whether it is [n_in, n_out]."""
    found = {}
    for name, entry in weights.items():
        module = name.removesuffix(_WEIGHT)
        bias = weights.get(f"{module}.bias")
        if module != name and bias and len(entry.shape) == 2 and entry.shape[0] != entry.shape[1]:
            found[module] = bias.shape == entry.shape[1:]
    return found


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]
