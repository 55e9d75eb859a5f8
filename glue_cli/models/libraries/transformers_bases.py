"""The names that transformers gives a base model's tensors in memory; its adapters use these names."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glue_cli.checkpoints.header import Checkpoint, TensorEntry
from glue_cli.checkpoints.tensors import FILE_DTYPES
from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.regular_files import read_text
from glue_cli.models.libraries.transformers_models import find_transformers
from glue_cli.models.libraries.transformers_names import name_tensors
from glue_cli.models.tasks import OF_ADAPTERS


def names_in_memory(base: Checkpoint, adapter_config: Mapping[str, Any]) -> dict[str, str]:
    """Map the names of a base's tensors in memory to those on disk.

    Tensors that transformers makes from several tensors on disk are left out. The model is built without memory for
    its weights.

    Args:
        adapter_config: an adapter's `adapter_config.json`, which names the class of the adapted model.
    Returns:
        an empty mapping if transformers is not installed, or the base's folder has no configuration that it knows.
    """
    model = _build(base, adapter_config)
    if model is None:
        return {}
    try:
        naming = name_tensors(model, base.entries)
    except SpecError:
        return {}
    return {name: source.names[0] for name, source in naming.sources.items() if source.make is None}


def class_of_adapted(base: Checkpoint, adapter_config: Mapping[str, Any]) -> str | None:
    """Return the name of the class of transformers that was adapted; None where `names_in_memory` returns nothing."""
    model = _build(base, adapter_config)
    return None if model is None else type(model).__name__


def unquantised(base: Checkpoint, adapter_config: Mapping[str, Any]) -> Checkpoint | None:
    """Return the header that a quantised base would have otherwise, with the names in memory and no offsets.

    Returns:
        None where `names_in_memory` returns nothing.
    """
    model = _build(base, adapter_config)
    if model is None:
        return None
    once = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return replace(
        base,
        entries={
            name: TensorEntry(name, FILE_DTYPES[tensor.dtype], tuple(tensor.shape), 0, 0)
            for name, tensor in reversed(once.values())
        },
    )


def _build(base: Checkpoint, adapter_config: Mapping[str, Any]) -> nn.Module | None:
    """Return the model that was adapted, without memory for its weights; None where it cannot be built."""
    folder = base.model_folder
    if folder is None or (name := _class_of(folder / "config.json", adapter_config)) is None:
        return None
    try:
        build = find_transformers(name, {"path": str(folder.absolute())}, Path())
        with torch.device("meta"):
            model: nn.Module = build()
    except SpecError:
        return None
    return model


def _class_of(config: Path, adapter_config: Mapping[str, Any]) -> str | None:
    """Return the adapted model's class, from the adapter's configuration or task type, or from the base's config."""
    mapping = adapter_config.get("auto_mapping")
    if isinstance(mapping, dict) and isinstance(name := mapping.get("base_model_class"), str):
        return name
    if isinstance(task := adapter_config.get("task_type"), str) and task in OF_ADAPTERS:
        return OF_ADAPTERS[task]
    try:
        return str(json.loads(read_text(config))["architectures"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
