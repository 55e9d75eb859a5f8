"""glue show"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from glue_cli.cli.options import WeightsOption
from glue_cli.cli.output import number, print_facts, print_lines, print_table
from glue_cli.cli.session import Session, with_session
from glue_cli.foundation.units import counted, listed, name_of, size

_LONGEST = 200  # characters of a value; --json has all of it
# glue's metadata that are shown elsewhere, or only by --json.
_LAST = ("settings", "experts", "alpha", "groups")


@with_session(
    without=(
        "spec",
        "set_",
        "device",
        "precision",
        "seed",
        "history",
        "force",
        "dry_run",
        "quiet",
        "resume",
        "save_every",
    )
)
def show(
    session: Session,
    path: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A file, an index of shards, a model folder or an adapter's.")
    ],
    weights: WeightsOption = None,
) -> None:
    """Print what a checkpoint says of itself: where it comes from, its configuration, its tensors and their sizes."""
    from glue_cli.workflows.show import show as work

    session.finish(work(path, weights), _show)


def _show(result: dict[str, Any]) -> None:
    on_disk = sum(file["bytes"] for file in result["files"])
    print_lines(
        result["checkpoint"],
        f"{counted(len(result['files']), 'file')}, {size(on_disk)}; {counted(result['parameters'], 'parameter')}",
    )
    facts = [("weights", result["weights"])] if "weights" in result else []
    facts += [*_glue_facts(result["glue"]), *_config_facts(result["config"])]
    facts += [(f"metadata {key}", _one_line(text)) for key, text in result["metadata"].items()]
    if facts:
        print()
        print_facts(facts)
    if rows := _expert_rows(result["glue"]):
        print()
        print_table(["expert", "alpha", "sha256"], rows)
    if groups := _group_rows(result["glue"]):
        print()
        print_table(*groups)
    print()
    tensors = [[t["name"], t["dtype"], _shape(t["shape"]), size(t["bytes"])] for t in result["tensors"]]
    print_table(["tensor", "dtype", "shape", "size"], tensors)
    of_dtype = result["dtypes"].items()
    print_lines("", *(f"{dtype}: {counted(n['tensors'], 'tensor')}, {size(n['bytes'])}" for dtype, n in of_dtype))


def _glue_facts(glue: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield glue's metadata as pairs of key and text."""
    if not glue:
        yield "glue", "no metadata of glue"
    for key, value in glue.items():
        if key == "class_names" and isinstance(value, list):
            yield "classes", listed(value, 10)
        elif key == "model" and isinstance(value, dict):
            yield "model", f"{value.get('arch')} {_one_line(value.get('args') or '')}".rstrip()
        elif key not in _LAST:
            yield from _by_key(key, value)
    yield from _by_key("settings", glue.get("settings") or {})


def _by_key(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield a value with its key, and what is behind keys of its own a line each."""
    if isinstance(value, dict):
        yield from ((f"{key} {inner}", _one_line(one)) for inner, one in value.items() if one is not None)
    else:
        yield key, _one_line(value)


def _config_facts(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a configuration says about the architecture, under the keys of transformers, timm and PEFT."""
    for key in ("architectures", "architecture", "model_type", "peft_type", "base_model_name_or_path"):
        if config.get(key):
            yield f"config {key}", _one_line(config[key])


def _expert_rows(glue: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each expert of a blend, with its alpha; empty if the metadata do not have them."""
    from glue_cli.checkpoints.hashing import SHOWN_DIGITS

    try:
        return [
            [str(expert["name"]), number(float(glue["alpha"][k])), (expert["sha256"] or "-")[:SHOWN_DIGITS]]
            for k, expert in enumerate(glue["experts"])
        ]
    except (KeyError, IndexError, TypeError, ValueError):  # another program's key with the same name
        return []


def _group_rows(glue: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """Return a table of each group's alphas, whichever way is longer than wide; None if a blend has one alpha."""
    try:
        names = [name_of(str(expert["name"])) for expert in glue["experts"]]
        by_group = {str(name): [number(float(share)) for share in alpha] for name, alpha in glue["groups"].items()}
        if len(by_group) >= len(names):
            return ["group", *names], [[name, *alpha] for name, alpha in by_group.items()]
        return ["expert", *by_group], [[name, *alpha] for name, *alpha in zip(names, *by_group.values(), strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _one_line(value: Any) -> str:
    from glue_cli.foundation.json_text import as_json

    text = " ".join((value if isinstance(value, str) else as_json(value)).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
