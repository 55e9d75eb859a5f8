"""Fetch the inputs of a command that are on the Hugging Face Hub, before anything is checked."""

from pathlib import Path

from glue_cli.checkpoints.hub import fetch, id_of, parse
from glue_cli.spec.schema import Spec


def fetched(spec: Spec) -> Spec:
    """Return the spec with `model.args.path` and `experts.init` on this disk; those from the Hub have their commit.

    Raises:
        UsageError, ResourceError: as for `checkpoints.hub.fetch`.
    """
    path = spec.model.args.get("path")
    if isinstance(path, str) and parse(path):
        folder = fetch(Path(path))
        pinned = str(id_of(folder) or path)
        model = spec.model.model_copy(update={"args": {**spec.model.args, "path": pinned}})
        spec = spec.model_copy(update={"model": model}).with_fetched({pinned: folder})
    if spec.experts and parse(spec.experts.init):
        folder = fetch(Path(spec.experts.init))
        pinned = str(id_of(folder) or spec.experts.init)
        experts = spec.experts.model_copy(update={"init": pinned})
        spec = spec.model_copy(update={"experts": experts}).with_fetched({pinned: folder})
    return spec
