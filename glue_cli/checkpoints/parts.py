"""Modules that a library keeps in subfolders of a model's folder, each with its own weights. Needs no torch.

For example, sentence-transformers keeps a Dense layer in `2_Dense/model.safetensors`. Such weights belong to the model
like those in the folder itself, so they are read as further files of the same checkpoint: their tensors get names such
as `2_Dense/linear.weight`, are compared, blended and hashed like all others, and are written to the same subfolder of
the output.
"""

import filecmp
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glue_cli.checkpoints.companions import FolderContent, look_into
from glue_cli.checkpoints.header import Checkpoint, stem_of
from glue_cli.checkpoints.json_files import read_json, read_object
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.foundation.errors import CheckpointError

_MODULES = "modules.json"  # written by sentence-transformers
_CONFIGURATIONS = ("config.json", "router_config.json", "lstm_config.json", "wordembedding_config.json")
# Keys of a module's configuration that do not change what it computes.
_OF_NO_EFFECT = ("_name_or_path", "torch_dtype", "dtype", "transformers_version")


@dataclass(frozen=True)
class Part:
    """A module in a subfolder.

    Attributes:
        name: the subfolder's path within the model's folder.
        stem: the name of its weights file without the suffix.
    """

    name: str
    stem: str

    @property
    def prefix(self) -> str:
        """The prefix that its tensors' names have in the whole checkpoint, but not in their own file."""
        return f"{self.name}/"

    @property
    def file(self) -> str:
        """The weights file of a blend, relative to the output's folder."""
        return f"{self.name}/{self.stem}.safetensors"


def add_parts(
    experts: Sequence[Checkpoint], *, apart: Collection[Path] = ()
) -> tuple[tuple[Checkpoint, ...], tuple[Part, ...]]:
    """Read the modules in subfolders of the experts' folders, and add their tensors to the experts.

    Args:
        apart: folders within the models' folders that do not belong to the models.
    Returns:
        the experts and their parts; no parts unless all experts are folders.
    Raises:
        CheckpointError: an expert lacks a part that another has, the modules compute different things, or weights
            that glue cannot blend differ.
    """
    folders = [expert.folder for expert in experts]
    if any(folder is None for folder in folders):
        return tuple(experts), ()
    homes = [folder for folder in folders if folder]
    content = [look_into(home, apart=[*apart, *(other for other in homes if other != home)]) for home in homes]
    _check_modules(homes, content)
    _check_others(homes, content)
    parts = tuple(Part(name, stem_of(weights)) for name, weights in content[0].parts.items())
    return tuple(_whole(expert, own.parts) for expert, own in zip(experts, content, strict=True)), parts


def without_parts(expert: Checkpoint, parts: Sequence[Part]) -> Checkpoint:
    """Return an expert without the tensors of its parts."""
    if not parts:
        return expert
    prefixes = tuple(part.prefix for part in parts)
    entries = {name: entry for name, entry in expert.entries.items() if not name.startswith(prefixes)}
    return replace(expert, entries=entries)


def _whole(expert: Checkpoint, parts: Mapping[str, Path]) -> Checkpoint:
    """Return an expert with the tensors of its parts, as further files."""
    for name, path in parts.items():
        part = read_checkpoint(path)
        if not part.entries:
            raise CheckpointError(f"'{path}' has no tensors", hint="remove these weights, which are none")
        n_files = len(expert.files)
        entries = {
            f"{name}/{entry.name}": entry._replace(name=f"{name}/{entry.name}", file=n_files + entry.file)
            for entry in part.entries.values()
        }
        expert = replace(
            expert,
            files=(*expert.files, *part.files),
            entries={**expert.entries, **entries},
            stamps=(*expert.stamps, *part.stamps),
        )
    return expert


def _check_modules(folders: Sequence[Path], content: Sequence[FolderContent]) -> None:
    """Check that all experts have the same parts, listed in the same order and configured alike."""
    names = dict.fromkeys(name for own in content for name in own.parts)
    lacking = [
        f"{folder}: '{name}'"
        for folder, own in zip(folders, content, strict=True)
        for name in names
        if name not in own.parts
    ]
    if lacking:
        raise CheckpointError(
            "these experts lack modules that others have in a subfolder",
            items=lacking,
            hint="blend models with the same modules, or name their files: glue mix a/model.safetensors ...",
        )
    first, *others = folders
    modules = [_modules(folder) for folder in folders]
    differing = [f"{folder}/{_MODULES}" for folder, own in zip(folders, modules, strict=True) if own != modules[0]]
    for name in dict.fromkeys((*(path for path, _ in modules[0]), *names)):
        wanted = _configuration(first / name)
        differing += [f"{folder}/{name}" for folder in others if name and _configuration(folder / name) != wanted]
    if differing:
        raise CheckpointError(
            f"the experts' modules compute different things: these are not those of '{first}'",
            items=differing,
            hint="blend models whose modules have the same types, order and config.json",
        )


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return the subfolders and the types of the modules of sentence-transformers, in their order."""
    modules = read_json(folder / _MODULES)
    listed = [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    return [(str(module.get("path")), str(module.get("type"))) for module in listed]


def _configuration(folder: Path) -> dict[str, Any]:
    """Return a module's settings, which some modules of sentence-transformers have in files of other names."""
    return {
        f"{name}: {key}": value
        for name in _CONFIGURATIONS
        for key, value in read_object(folder / name).items()
        if key not in _OF_NO_EFFECT
    }


def _check_others(folders: Sequence[Path], content: Sequence[FolderContent]) -> None:
    """Check that weights which glue cannot blend are the same in all experts."""
    names = dict.fromkeys(
        path.relative_to(folder) for folder, own in zip(folders, content, strict=True) for path in own.others
    )
    differing = []
    for name in names:
        files = [folder / name for folder in folders]
        if not all(file.is_file() and filecmp.cmp(files[0], file, shallow=False) for file in files):
            differing.append(f"'{name}'")
    if differing:
        raise CheckpointError(
            "the experts' folders hold further weights that differ, and that glue cannot blend",
            items=differing,
            hint="move these files elsewhere if they are no part of the model, or name the experts' model.safetensors",
        )
