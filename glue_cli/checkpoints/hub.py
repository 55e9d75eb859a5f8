"""Models on the Hugging Face Hub: `hf:OWNER/NAME[@REVISION]` becomes a folder of the Hub's own cache.

Needs no torch, and `huggingface_hub` only where such a model is named.
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
_FOLDER = "models--"  # how a model's folder in the cache begins
_TIMEOUT_S = 10.0
_FORM = "wanted hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
_MODULES = ("huggingface_hub", "huggingface_hub.errors", "huggingface_hub.constants")
# Weights of other libraries, and copies of the weights for other programs, which nobody reads here.
_FOREIGN = [
    *("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.gguf", "*.tflite", "*.mlmodel"),
    *("onnx/*", "openvino/*", "coreml/*", "original/*", "runs/*"),
]
# A second set of weights where there are safetensors; those of modules in subfolders are no such set.
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
    """Return the folder of a model on the Hub, fetched unless it is in the cache; any other path as it is.

    The cache is that of `huggingface_hub`, which HF_HUB_CACHE names. Without a network, or with HF_HUB_OFFLINE, what
    is in it counts.

    Raises:
        UsageError: the name is wrong, the Hub has no such model or revision or does not give it to this user, or there
            is no network and the cache lacks it; or `huggingface_hub` is not installed.
        ResourceError: it cannot be fetched.
    """
    wanted = parse(str(path))
    if wanted is None:
        return path
    hub = _import_hub(wanted)
    try:
        # Without the retries of a listing, which make one wait 23 s for what is cached where there is no network.
        info = hub.library.HfApi().model_info(wanted.name, revision=wanted.revision, timeout=_TIMEOUT_S)
    except Exception as error:  # the Hub's refusals, and what each of many layers says without a network
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
    """Return which model on the Hub a text names; None for a path.

    Raises:
        UsageError: it begins as one, and is none.
    """
    if not written.startswith(PREFIX):
        return None
    found = _WRITTEN.fullmatch(written)
    if not found or ".." in written:
        raise UsageError(f"'{written}' names no model on the Hub", hint=_FORM)
    return HubId(found["name"], found["revision"])


def id_of(path: Path) -> HubId | None:
    """Return which model a path in the Hub's cache belongs to, with its commit; None for any other path."""
    for folder in (path, *path.parents):
        model = folder.parent.parent.name
        if folder.parent.name == "snapshots" and model.startswith(_FOLDER) and _COMMIT.fullmatch(folder.name):
            return HubId(model.removeprefix(_FOLDER).replace("--", "/"), folder.name)
    return None


def is_called(path: Path, written: str) -> bool:
    """Tell whether a text names the model that a path in the Hub's cache belongs to; with any branch or tag."""
    found = id_of(path)
    named = _WRITTEN.fullmatch(written) if found else None
    if not found or not named or named["name"] != found.name:
        return False
    return not _COMMIT.fullmatch(named["revision"] or "") or named["revision"] == found.revision


def _import_hub(wanted: HubId) -> _Hub:
    try:
        library, errors, constants = map(import_module, _MODULES)
    except ImportError as error:
        message = f"'{wanted}' needs the library huggingface_hub, which is not installed"
        raise UsageError(message, hint="pip install 'glue-cli[hf]'") from error
    return _Hub(library, errors, Path(constants.HF_HUB_CACHE))


def _left_out(names: Sequence[str]) -> list[str]:
    """Return patterns of what is not fetched: of two sets of weights, that which is not read."""
    has_safetensors = any("/" not in name and name.endswith(".safetensors") for name in names)
    return [*_FOREIGN, *_OF_TORCH] if has_safetensors else _FOREIGN


def _find_cached(hub: _Hub, wanted: HubId, fault: Exception) -> Path:
    """Return a model's folder in the cache.

    Args:
        fault: why the Hub was of no help.
    """
    try:
        found = hub.library.snapshot_download(
            wanted.name,
            revision=wanted.revision,
            cache_dir=hub.cache,
            ignore_patterns=[*_FOREIGN, *_OF_TORCH],
            local_files_only=True,
        )
    except Exception as error:
        raise _refusal(hub, wanted, fault) or _not_cached(hub, wanted, fault) from error
    return Path(found)


def _refusal(hub: _Hub, wanted: HubId, error: Exception) -> GlueError | None:
    """Return what the Hub's answer means to the user; None where it gave none."""
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
