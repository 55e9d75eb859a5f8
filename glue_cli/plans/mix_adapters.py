"""What a mix of adapters is asked to do: one adapter, or a model that they are merged into."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_cli.blend.adapters.adapted_base import AdaptedBase, fit
from glue_cli.blend.adapters.adapter import CONFIG, WEIGHTS, Adapter, adapter_misfits, is_adapter, read_adapter
from glue_cli.blend.adapters.disk_space import mixed_bytes
from glue_cli.blend.misfit import refuse
from glue_cli.blend.quantised import library_of
from glue_cli.checkpoints.companions import CARD
from glue_cli.checkpoints.configuration import NO_CHANGES
from glue_cli.checkpoints.destination import Destination
from glue_cli.checkpoints.header import TORCH_SUFFIXES, Checkpoint
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError, SpecError, UsageError
from glue_cli.plans.mix_merged import Merged, plan_merged
from glue_cli.plans.mix_records import ADAPTER_BANKS, Adapters, Coefficients, Search, Writing
from glue_cli.plans.outputs import Outputs

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec

_NAME_BASE = "set model.args.path to its folder"
_FILES = (".safetensors", ".json", *TORCH_SUFFIXES)  # file endings of checkpoints


def plan_adapters(
    paths: Sequence[Path],
    outputs: Outputs,
    coefficients: Coefficients,
    base: Path | None,
    writing: Writing,
    search: Search,
    spec: "Spec | None",
) -> tuple[tuple[Checkpoint, ...], Adapters, Destination]:
    """Check adapters against each other, their base and the output, from the headers alone.

    Args:
        base: the model that they are merged into; None mixes them into an adapter.
    Raises:
        UsageError: an option is not for adapters, or the output exists or has the wrong kind of name.
        CheckpointError: an adapter or the base is damaged, or they do not fit each other.
        SpecError: a search has no base model to run.
        ResourceError: the disk has no room for the mix.
    """
    if writing.dtype or writing.max_shard_bytes is not None:
        raise UsageError(
            "adapters are mixed in their own dtypes, into one file", hint="leave --dtype and --max-shard-size out"
        )
    if search.bank not in ADAPTER_BANKS:
        raise UsageError(f"--bank {search.bank} is for whole checkpoints", hint=f"--bank {'|'.join(ADAPTER_BANKS)}")
    adapters = read_adapters(paths)
    experts = tuple(replace(adapter.checkpoint, path=adapter.path) for adapter in adapters)
    known_base = _read_base(base, spec)
    if known_base is None and coefficients.needs_data:
        raise SpecError("a search over adapters needs their base model", hint=_NAME_BASE)
    adapted = None
    if known_base:
        adapted = _adapted(known_base, adapters, merges=base is not None, runs=coefficients.needs_data)
    merged = None
    if base and known_base and adapted:
        merged = _plan_merged(adapted, outputs, writing)
        destination = merged.destination
        outputs.check([*experts, known_base], spec, destination)
        outputs.check_room(destination.n_bytes)
    else:
        refuse(adapter_misfits(adapters))
        destination = _plan_adapter(outputs, writing)
        outputs.check(experts, spec, destination)
        outputs.check_room(mixed_bytes(_taking_part(adapters, coefficients.alpha)))
    changes, notes = (merged.changes, merged.notes) if merged else (NO_CHANGES, ())
    return experts, Adapters(adapters, adapted, base is not None, changes, notes), destination


def plan_adapter_alone(path: Path, spec: "Spec") -> tuple[Checkpoint, Adapters]:
    """Fit one adapter to the spec's model, to be run and not written.

    Returns:
        the adapter as a checkpoint as well.
    Raises:
        SpecError: the spec does not name the folder of the adapter's base.
        CheckpointError: as for `plan_adapters`.
    """
    adapters = read_adapters([path])
    base = _read_base(None, spec)
    if base is None:
        raise SpecError(f"the adapter '{path}' needs its base model", hint=_NAME_BASE)
    adapted = _adapted(base, adapters, merges=False, runs=True)
    return replace(adapters[0].checkpoint, path=adapters[0].path), Adapters(adapters, adapted, merges=False)


def read_adapters(paths: Sequence[Path]) -> tuple[Adapter, ...]:
    """Read the headers of adapters.

    Raises:
        CheckpointError: some are whole checkpoints, or one is damaged.
    """
    whole = [path for path in paths if not is_adapter(path)]
    within = [str(inner) for path in whole if path.is_dir() for inner in sorted(path.iterdir()) if is_adapter(inner)]
    if whole:
        hint = f"name the adapters: {' '.join(within)}" if within else "name either kind"
        raise CheckpointError("adapters and whole checkpoints cannot be mixed", items=[*map(str, whole)], hint=hint)
    return tuple(read_adapter(path) for path in paths)


def _read_base(base: Path | None, spec: "Spec | None") -> Checkpoint | None:
    """Return the base: the given one, or the spec's model, whose folder a search needs anyway."""
    folder = spec.model.args.get("path") if spec else None
    if base:
        return read_checkpoint(base)
    return read_checkpoint(spec.path(folder)) if spec and isinstance(folder, str) else None


def _adapted(base: Checkpoint, adapters: Sequence[Adapter], *, merges: bool, runs: bool) -> AdaptedBase:
    """Fit adapters to their base; to a quantised one, that a library can load, as to the model that it was made from.

    Args:
        merges: whether they are merged into it; runs: whether it is run with them.
    Raises:
        CheckpointError: as for `fit`, or the library that has to load a quantised base is not installed.
    """
    described, method = None, None if merges else library_of(base)
    if method:
        from glue_cli.models.libraries.transformers_bases import unquantised  # these import torch
        from glue_cli.models.libraries.transformers_quantised import check_library

        if runs:
            check_library(method, base.path)
        described = unquantised(base, adapters[0].config)
    if described is None:
        return fit(base, adapters, names_in_memory=_names_in_memory)
    return replace(fit(described, adapters), quantised_by=method)


def _names_in_memory(base: Checkpoint, adapter_config: Mapping[str, Any]) -> Mapping[str, str]:
    from glue_cli.models.libraries.transformers_bases import names_in_memory  # this imports torch

    return names_in_memory(base, adapter_config)


def _class_of_adapted(base: Checkpoint, adapter_config: Mapping[str, Any]) -> str | None:
    from glue_cli.models.libraries.transformers_bases import class_of_adapted  # this imports torch

    return class_of_adapted(base, adapter_config)


def _plan_merged(adapted: AdaptedBase, outputs: Outputs, writing: Writing) -> Merged:
    assert outputs.result
    merged = plan_merged(adapted, outputs.result, card=writing.card, find_class=_class_of_adapted)
    if merged.destination.index:
        raise UsageError(
            f"the output '{outputs.result}' is an index, and the blend one file", hint="-o prior.safetensors"
        )
    return merged


def _plan_adapter(outputs: Outputs, writing: Writing) -> Destination:
    assert (folder := outputs.result)
    if folder.name.endswith(_FILES):
        raise UsageError(f"the output '{folder}' is a file's name, an adapter is a folder", hint="-o prior/")
    return Destination(
        folder, ((), ()), (folder / CONFIG, folder / WEIGHTS), card=folder / CARD if writing.card else None
    )


def _taking_part(adapters: Sequence[Adapter], alpha: Sequence[float] | None) -> Sequence[Adapter]:
    """Return the adapters that may take part in the mix: all of them if alpha is not known yet."""
    return [adapter for adapter, a in zip(adapters, alpha or [1.0] * len(adapters), strict=True) if a != 0]
