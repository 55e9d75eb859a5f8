"""What a blend's model card says besides its metadata: what it was made from, and which library loads it."""

import re
from collections.abc import Sequence
from pathlib import Path

from glue_cli.blend.adapters.adapter import CONFIG
from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.hub import id_of
from glue_cli.checkpoints.json_files import read_json, read_object
from glue_cli.plans.mix_records import Adapters, Tensors
from glue_cli.results.card import About

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def about_blend(experts: Sequence[Checkpoint], adapters: Adapters | None, tensors: Tensors) -> About:
    """Return what the experts' folders tell about the blend."""
    folders = [expert.path for expert in experts]
    if adapters and not adapters.merges:
        return About("peft", "adapter", _hub_ids(folders, CONFIG, "base_model_name_or_path"))
    if adapters:
        assert adapters.adapted
        home = adapters.adapted.base.folder
        ids = _hub_ids([home] if home else [], "config.json", "_name_or_path")
        ids = ids or _hub_ids(folders, CONFIG, "base_model_name_or_path")
        return About(_library(home), "finetune", ids, adapters.changes.architecture or _architecture(home))
    home = experts[tensors.tokens.keeper if tensors.tokens else 0].folder
    fetched = tuple(dict.fromkeys(hub_id.name for folder in folders if (hub_id := id_of(folder))))
    ids = fetched or _hub_ids([folder for folder in folders if folder.is_dir()], "config.json", "_name_or_path")
    return About(_library(home), "merge", ids, _architecture(home))


def _hub_ids(folders: Sequence[Path], file: str, key: str) -> tuple[str, ...]:
    """Return the names on the Hub that the configurations have under a key."""
    named = [read_object(folder / file).get(key) for folder in folders]
    return tuple(dict.fromkeys(name for name in named if isinstance(name, str) and _HUB_ID.fullmatch(name)))


def _library(folder: Path | None) -> str | None:
    """Return the Hub's name of the library that a folder is for."""
    if folder is None:
        return None
    if isinstance(read_json(folder / "modules.json"), list):
        return "sentence-transformers"
    config = read_object(folder / "config.json")
    if "model_type" in config:
        return "transformers"
    if "architecture" in config:
        return "timm"
    return "diffusers" if "_class_name" in config else None


def _architecture(folder: Path | None) -> str | None:
    """Return the class that a configuration of transformers names first."""
    named = read_object(folder / "config.json").get("architectures") if folder else None
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) and first.isidentifier() else None
