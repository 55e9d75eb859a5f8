"""What every result says about where it comes from, so that a reader can run it again."""

from typing import TYPE_CHECKING, Any

from glue_cli import __version__

if TYPE_CHECKING:
    from glue_cli.spec.schema import Spec


def origin_of(spec: "Spec | None") -> dict[str, Any]:
    """Return glue's version and the spec's model and data; without `data.root`, a path on somebody's machine."""
    if spec is None:
        return {"glue": __version__}
    return {"glue": __version__, "model": spec.model.model_dump(), "data": spec.data.model_dump(exclude={"root"})}
