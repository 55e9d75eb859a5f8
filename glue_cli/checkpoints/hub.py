"""Models on the Hugging Face Hub: `hf:OWNER/NAME[@REVISION]` becomes a folder of the Hub's own cache.

Needs no torch, and needs `huggingface_hub` only for such models.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from glue_cli.foundation.errors import GlueError, ResourceError, UsageError
from glue_cli.foundation.printable import shown

PREFIX = "hf:"
_WRITTEN = re.compile(r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FOLDER = "models--"  # the prefix of a model's folder in the cache
_TIMEOUT_S = 10.0
_FORM = "wanted hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
_MODULES = ("huggingface_hub", "huggingface_hub.errors", "huggingface_hub.constants")
# Weights of other libraries and copies for other programs, which glue does not read.
_FOREIGN = [
    *("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.gguf", "*.tflite", "*.mlmodel"),
    *("onnx/*", "openvino/*", "coreml/*", "original/*", "runs/*"),
]
# Weights that are not needed if there are safetensors; those of modules in subfolders are still needed.
_OF_TORCH = [
    *("pytorch_model*.bin", "pytorch_model*.bin.index.json", "adapter_model.bin", "consolidated*"),
    *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state*.pth"),
]


@dataclass(frozen=True)
class HubId:
    """A model on the Hub.

    Attributes:
        name: OWNER/NAME.
        revision: a branch, a tag or a commit; None is the main branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")


class _Hub(NamedTuple):
    """The library, its errors, and its cache."""

    library: Any
    errors: Any
    cache: Path


def fetch(path: Path) -> Path:
    """Return the folder of a model on the Hub, downloading what the cache lacks; return any other path unchanged.

    The cache is that of `huggingface_hub`, set by HF_HUB_CACHE. Without a network, or with HF_HUB_OFFLINE, only the
    cache is used.

    Raises:
        UsageError: the name is wrong, the Hub has no such model or revision or denies this user access, there is no
            network and the model is not in the cache, or `huggingface_hub` is not installed.
        ResourceError: the download failed.
    """
    wanted = parse(str(path))
    if wanted is None:
        return path
    hub = _import_hub(wanted)
    try:
        # This call does not retry: without a network, retries would delay the use of a cached model by 23 s.
        info = hub.library.HfApi().model_info(wanted.name, revision=wanted.revision, timeout=_TIMEOUT_S)
    except Exception as error:  # a refusal by the Hub, or an error of any network layer
        return _find_cached(hub, wanted, error)
    try:
        folder = hub.library.snapshot_download(
            wanted.name,
            revision=wanted.revision,
            cache_dir=hub.cache,
            ignore_patterns=_left_out([file.rfilename for file in info.siblings]),
        )
    except Exception as error:
        message = f"'{wanted}' cannot be fetched: {shown(error)}"
        raise _refusal(hub, wanted, error) or ResourceError(message, hint="try again; what came stays") from error
    return Path(folder)


def parse(written: str) -> HubId | None:
    """Return the model on the Hub that a text names; None for a path.

    Raises:
        UsageError: it begins with `hf:`, but is not a valid name.
    """
    if not written.startswith(PREFIX):
        return None
    match = _WRITTEN.fullmatch(written)
    if not match or ".." in written:
        raise UsageError(f"'{written}' names no model on the Hub", hint=_FORM)
    return HubId(match["name"], match["revision"])


def id_of(path: Path) -> HubId | None:
    """Return the model, with its commit, that a path in the Hub's cache belongs to; None for any other path."""
    for folder in (path, *path.parents):
        model = folder.parent.parent.name
        if folder.parent.name == "snapshots" and model.startswith(_FOLDER) and _COMMIT.fullmatch(folder.name):
            return HubId(model.removeprefix(_FOLDER).replace("--", "/"), folder.name)
    return None


def is_called(path: Path, written: str) -> bool:
    """Tell whether a text names the model of a path in the Hub's cache; with any branch or tag, or the same commit."""
    hub_id = id_of(path)
    named = _WRITTEN.fullmatch(written) if hub_id else None
    if not hub_id or not named or named["name"] != hub_id.name:
        return False
    return not _COMMIT.fullmatch(named["revision"] or "") or named["revision"] == hub_id.revision


def _import_hub(wanted: HubId) -> _Hub:
    try:
        library, errors, constants = map(import_module, _MODULES)
    except ImportError as error:
        message = f"'{wanted}' needs the library huggingface_hub, which is not installed"
        raise UsageError(message, hint="pip install 'glue-cli[hf]'") from error
    return _Hub(library, errors, Path(constants.HF_HUB_CACHE))


def _left_out(names: Sequence[str]) -> list[str]:
    """Return patterns of the files not to fetch, given all files' names: weights that glue would not read."""
    has_safetensors = any("/" not in name and name.endswith(".safetensors") for name in names)
    return [*_FOREIGN, *_OF_TORCH] if has_safetensors else _FOREIGN


def _find_cached(hub: _Hub, wanted: HubId, fault: Exception) -> Path:
    """Return a model's folder in the cache.

    Args:
        fault: the error of asking the Hub.
    """
    try:
        folder = hub.library.snapshot_download(
            wanted.name,
            revision=wanted.revision,
            cache_dir=hub.cache,
            ignore_patterns=[*_FOREIGN, *_OF_TORCH],
            local_files_only=True,
        )
    except Exception as error:
        raise _refusal(hub, wanted, fault) or _not_cached(hub, wanted, fault) from error
    return Path(folder)


def _refusal(hub: _Hub, wanted: HubId, error: Exception) -> GlueError | None:
    """Return the error to show the user for a refusal by the Hub; None if it was no refusal."""
    errors = hub.errors
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"'{wanted}' names no model on the Hub: {shown(error)}", hint=_FORM)
    if isinstance(error, errors.GatedRepoError):
        hint = f"ask for access on https://huggingface.co/{wanted.name}, then: hf auth login"
        return UsageError(f"the Hub does not give '{wanted}' to everybody", hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        message = f"the Hub has no revision '{wanted.revision or 'main'}' of '{PREFIX}{wanted.name}'"
        return UsageError(message, hint="name a branch, a tag or a commit of it")
    if isinstance(error, errors.RepositoryNotFoundError):
        message = f"the Hub has no '{PREFIX}{wanted.name}' that this user may see"
        return UsageError(message, hint="check the name; for a private model: hf auth login")
    return None


def _not_cached(hub: _Hub, wanted: HubId, fault: Exception) -> UsageError:
    is_off = isinstance(fault, hub.errors.OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if is_off else f"the Hub cannot be reached ({shown(fault)})"
    snapshots = hub.cache / f"{_FOLDER}{wanted.name.replace('/', '--')}" / "snapshots"
    others = sorted(path.name for path in snapshots.glob("*")) if snapshots.is_dir() else []
    revision = f" --revision {wanted.revision}" if wanted.revision else ""
    return UsageError(
        f"'{wanted}' is not whole in the cache '{hub.cache}', and {why}",
        items=[f"the cache has {PREFIX}{wanted.name}@{commit}" for commit in others],
        hint=f"fetch it where there is a network: hf download {wanted.name}{revision}",
    )
