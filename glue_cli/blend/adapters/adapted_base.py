"""Find the weights of a base that its adapters update: names, shapes and orientations. Needs no torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glue_cli.blend.adapters.adapter import Adapter, Update, adapter_misfits
from glue_cli.blend.misfit import refuse
from glue_cli.blend.quantised import quantised_base_misfits
from glue_cli.checkpoints.header import FLOAT_DTYPES, Checkpoint, TensorEntry
from glue_cli.foundation.errors import CheckpointError

_WEIGHT = ".weight"
FindNames = Callable[[Checkpoint, Mapping[str, Any]], Mapping[str, str]]


@dataclass(frozen=True)
class AdaptedBase:
    """A base checkpoint and the adapters that fit it.

    Attributes:
        base: the base's header, with the tensor names of the adapted model; if a library uses other names on disk,
            with the names on disk.
        adapters: checked to have this base; their tensors are named like the base's.
        transposed: the modules whose weight is [n_in, n_out], or an embedding's [vocabulary, width].
        quantised_by: the library that has to load the base; `base` then describes the model that it was made from,
            and its tensors cannot be read.
    """

    base: Checkpoint
    adapters: Sequence[Adapter]
    transposed: frozenset[str]
    quantised_by: str | None = None

    @property
    def changed(self) -> list[str]:
        """The names of all tensors that an adapter updates or replaces."""
        names = {update.weight for adapter in self.adapters for update in adapter.updates.values()}
        return sorted(names.union(self.adapters[0].plain.entries))

    @property
    def keeps_tied(self) -> bool:
        """Whether PEFT was told to adapt what the base ties alike."""
        return all(adapter.config.get("ensure_weight_tying") is True for adapter in self.adapters)

    @property
    def merged(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """The name, dtype and shape of every tensor of the base with adapters merged into it; the base's dtypes."""
        entries = {**self.base.entries, **self.adapters[0].plain.entries}
        return [(name, self.base.entries.get(name, entry).dtype, entry.shape) for name, entry in entries.items()]


def fit(base: Checkpoint, adapters: Sequence[Adapter], *, names_in_memory: FindNames | None = None) -> AdaptedBase:
    """Find the weights of a base that adapters update.

    Args:
        names_in_memory: a function that is called if the base's names on disk do not fit the adapters. It takes the
            base and an adapter's configuration, and maps the names in memory, which adapters use, to those on disk.
    Raises:
        CheckpointError: the adapters do not fit each other, or do not fit the base, or the base is quantised.
    """
    refuse([*adapter_misfits(adapters), *quantised_base_misfits(base)])
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
            items.append(f"'{entry.name}' is {entry.dtype} {list(entry.shape)}, and its update is {list(wanted)}")
    if items:
        hint = "name the base that the adapters were trained on"
        raise CheckpointError(f"the adapters do not fit '{base.path}'", items=items, hint=hint)
    return AdaptedBase(named, adapters, _transposed(weights, updates, adapters))


def _updated(adapters: Sequence[Adapter]) -> list[str]:
    """Return the names of all weights that an adapter updates."""
    return [*dict.fromkeys(update.weight for adapter in adapters for update in adapter.updates.values())]


def _renamed(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    """Rename the tensors that an adapter updates and replaces; `names` maps names in memory to those on disk."""
    modules = {update: names[update.weight].removesuffix(_WEIGHT) for update in adapter.updates.values()}
    plain = {names.get(name, name): entry for name, entry in adapter.plain.entries.items()}
    return replace(
        adapter,
        updates={module: replace(update, module=module) for update, module in modules.items()},
        plain=replace(adapter.plain, entries=plain),
    )


def _named_as_adapted(base: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """Give the base's tensors the names of the adapted model, if only a prefix differs.

    GPT-2 is published without a head, as `h.0...`, and adapted with one, as `transformer.h.0...`; BERT is published
    with a head, as `bert.encoder...`, and may be adapted without one, as `encoder...`.
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
    """Yield pairs of a prefix that only the base's names may have, and a prefix that they may lack."""
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
    """Return the modules whose weight is the transpose of b @ a.

    Shapes tell it, except for square weights. These follow the modules with the same last name part whose shapes do
    tell it. Only if there are none, the configuration's `fan_in_fan_out` decides: PEFT sets it by the class of each
    layer, so that it holds the value for the last layer only.
    """
    known = {
        update.module: is_transposed
        for update in updates.values()
        if (is_transposed := _by_shape(weights, update)) is not None
    }
    by_leaf: dict[str, set[bool]] = {}
    for module, is_transposed in (_by_biases(weights) | known).items():
        by_leaf.setdefault(_leaf(module), set()).add(is_transposed)
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
    return frozenset(module for module, is_transposed in known.items() if is_transposed)


def _by_shape(weights: Mapping[str, TensorEntry], update: Update) -> bool | None:
    if update.is_embedding or len(update.outer_shape) > 2:
        return update.is_embedding
    n_out, n_in = update.outer_shape
    return None if n_out == n_in else weights[update.weight].shape != (n_out, n_in)


def _by_biases(weights: Mapping[str, TensorEntry]) -> dict[str, bool]:
    """Return whether the weight is [n_in, n_out], for each module that has a bias [n_out] and no square weight."""
    is_transposed = {}
    for name, entry in weights.items():
        module = name.removesuffix(_WEIGHT)
        bias = weights.get(f"{module}.bias")
        if module != name and bias and len(entry.shape) == 2 and entry.shape[0] != entry.shape[1]:
            is_transposed[module] = bias.shape == entry.shape[1:]
    return is_transposed


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]
