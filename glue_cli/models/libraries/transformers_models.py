"""The models of transformers, built from a local folder's `config.json`; no downloads, and no code from the folder."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.imports import import_beside_torchvision
from glue_cli.foundation.nearest import did_you_mean
from glue_cli.models.libraries.faults import call_library, import_error, reason_of, unknown_name


def find_transformers(name: str, args: Mapping[str, Any], folder: Path) -> Callable[[], Any]:
    """Return a function that builds `transformers:CLASS` with fresh weights, float32.

    Args:
        name: an `AutoModel...` class, or a model's own class.
        args: `path`, the folder with `config.json`; all others override values of the config, such as `num_labels`.
        folder: the folder from which `path` is looked up.
    Raises:
        SpecError: transformers is missing, or has no such class; the folder, its config or the other arguments are
            wrong.
    """
    return partial(_build, f"transformers:{name}", *find_class(name, args, folder))


def find_class(name: str, args: Mapping[str, Any], folder: Path) -> tuple[Any, Any]:
    """Return a class of transformers and its config; arguments and errors as in `find_transformers`."""
    arch = f"transformers:{name}"
    transformers = _import_transformers(arch)
    try:
        model_class: Any = getattr(transformers, name, None)
    except ImportError as error:
        raise import_error("transformers", arch, error) from error
    is_auto = hasattr(model_class, "from_config")
    if not is_auto and not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        known = [other for other in dir(transformers) if other.startswith("AutoModel")]
        raise unknown_name(arch, "transformers", name, known)
    config = _read_config(transformers, arch, args, folder)
    if not is_auto and not isinstance(config, model_class.config_class):
        raise SpecError(
            f"model.args.path: the config is of type '{config.model_type}',"
            f" '{arch}' wants '{model_class.config_class.model_type}'",
            hint="name an AutoModel class, which takes its type from the config",
        )
    return model_class, config


def _import_transformers(arch: str) -> ModuleType:
    try:
        transformers = import_beside_torchvision("transformers")
    except Exception as error:  # importing a library beside an incompatible one may raise any error
        raise import_error("transformers", arch, error) from error
    hub: Any = import_module("huggingface_hub.constants")
    hub.HF_HUB_OFFLINE = True  # nothing that a config names is downloaded
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _read_config(transformers: ModuleType, arch: str, args: Mapping[str, Any], folder: Path) -> Any:
    written = args.get("path")
    if not isinstance(written, str):
        actual = "missing" if written is None else f"found {written!r}"
        raise SpecError(
            f"model.args.path: {actual}, wanted the folder with the config.json of '{arch}'",
            hint="name a Hugging Face model folder on disk",
        )
    path = folder / os.path.expanduser(written)
    if not (path / "config.json").is_file():
        raise SpecError(
            f"model.args.path: there is no '{path / 'config.json'}'",
            hint="name a Hugging Face model folder on disk; glue downloads none",
        )
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = reason_of(error.__cause__ or error)
        raise SpecError(
            f"'{path / 'config.json'}' is no config that transformers knows: {reason}",
            hint="name the folder of a model in model.args.path, or update transformers",
        ) from error
    config._attn_implementation = None  # a config may name a kernel on the Hub, which would be downloaded and run
    if hasattr(config, "use_cache"):
        config.use_cache = False  # only generation needs it; otherwise every forward pass keeps all keys and values
    faults = [fault for name, value in args.items() if name != "path" and (fault := _override(config, name, value))]
    if faults:
        raise SpecError(
            faults[0] if len(faults) == 1 else f"model.args: {len(faults)} values do not fit '{path / 'config.json'}'",
            items=faults if len(faults) > 1 else (),
            hint="model.args has 'path' and values of its config.json to override",
        )
    return config


def _override(config: Any, name: str, value: object) -> str | None:
    """Set a value of the config; return what is wrong with it, if anything."""
    if not hasattr(config, name):
        guess = did_you_mean(name, ["num_labels", *config.to_dict()])
        return f"model.args.{name}: a config of type '{config.model_type}' has no '{name}'; {guess}".removesuffix("; ")
    try:
        setattr(config, name, value)
    except Exception as error:
        return f"model.args.{name}: {reason_of(error.__cause__ or error)}"
    return None


def _build(arch: str, model_class: Any, config: Any) -> Any:
    import torch

    try:
        if hasattr(model_class, "from_config"):
            make = partial(model_class.from_config, config, dtype=torch.float32, trust_remote_code=False)
        else:
            make = partial(model_class, config)
        return call_library(arch, make, {}, ())
    except ImportError as error:
        raise import_error("transformers", arch, error) from error
