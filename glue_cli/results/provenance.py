"""The part of every result that says how it was made, so that a reader can repeat it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glue_cli import __version__

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec


def origin_of(spec: "Spec | None") -> dict[str, Any]:
    """Return glue's version and the spec's model and data; not `data.root`, which is a path on one machine.

    `data.model_says` is the normalisation of images that the model's files state; it is used for a `data.mean` or
    `data.std` that is null.
    """
    if spec is None:
        return {"glue": __version__}
    data = spec.data.model_dump(exclude={"root"})
    if stated := spec.of_images:
        data["model_says"] = {"mean": list(stated.mean), "std": list(stated.std), "file": Path(stated.source).name}
    return {"glue": __version__, "model": spec.model.model_dump(), "data": data}
