"""What a blend says of itself, in its metadata and to a run that goes on from it: experts, settings, recipe, data."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glue_cli import __version__
from glue_cli.checkpoints.hashing import StreamedHash
from glue_cli.checkpoints.header import short_names
from glue_cli.foundation.run import Run
from glue_cli.plans.mix import MixPlan
from glue_cli.workflows.mix.choice import Choice, by_expert, by_group
from glue_cli.workflows.mix.target import target_of

if TYPE_CHECKING:
    from glue_cli.data.target import Target


def described(plan: MixPlan) -> dict[str, Any]:
    """Return the part of the blend's metadata that is known before the work begins."""
    if plan.like:
        return dict(plan.like.blend.glue)
    given = {} if plan.coefficients.alpha is None else {"alpha": list(plan.coefficients.alpha)}
    return {"glue": __version__, "kind": "prior", "method": plan.method, **given, "seed": plan.seed}


def described_in_full(plan: MixPlan, hashes: Sequence[StreamedHash], run: Run) -> dict[str, Any]:
    """Return what distinguishes the plan's blend from others; reads the data, and takes the experts' sha256."""
    if plan.like:
        return described(plan)
    digests: list[str | None] = [streamed.finish() for streamed in hashes] or _without_hashes(plan)
    sections = plan.spec.model_dump(include={"mix", "loss", "objective"}) if plan.spec else {}
    settings = sections if plan.coefficients.is_search else {}
    return {
        **described(plan),
        "experts": _experts_of(plan, digests),
        "settings": settings,
        "recipe": plan.record,
        **inputs_of_mix(plan, target_of(plan, run)),
    }


def metadata_of(
    plan: MixPlan,
    chosen: Choice,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Any],
    digests: Sequence[str | None],
) -> dict[str, Any]:
    """Return the blend's metadata; of a blend that is made again, those of the first.

    Args:
        recipe, inputs: of `recipe_of` and `inputs_of_mix`, which read files and data.
        digests: the experts' sha256 [K], each None if no hash is wanted.
    """
    if plan.like:
        return plan.like.blend.glue
    groups = by_group(plan, chosen.alpha)
    return {
        **described(plan),
        **_shared_by_all(plan),
        "alpha": by_expert(chosen.alpha),
        **({"groups": groups} if groups else {}),
        "experts": _experts_of(plan, digests),
        "settings": chosen.settings,
        **_measured(plan, chosen),
        "recipe": recipe,
        **inputs,
    }


def sizes_of(plan: MixPlan) -> Sequence[int | None]:
    """Return how many examples each expert was trained on, as given or as it says itself, [K]."""
    return plan.coefficients.sizes or [expert.glue.get("examples") for expert in plan.experts]


def recipe_of(plan: MixPlan, chosen: Choice) -> dict[str, Any]:
    """Return how the blend's tensors are made, with what its BatchNorm statistics were taken with.

    Raises:
        CheckpointError: a blend is made again, and the model that adapters are merged into was another.
    """
    refreshed = {"refreshed": chosen.refreshed_on} if chosen.refreshed_on else {}
    return {**plan.record, **_base(plan), **refreshed}


def inputs_of_mix(plan: MixPlan, target: "Target | None") -> dict[str, Any]:
    """Return what the blend is made from beside the experts, for its metadata; empty if it takes no data."""
    takes_data = plan.coefficients.needs_data or plan.tensors.statistics != "averaged"
    if plan.spec is None or target is None or not takes_data:
        return {}
    from glue_cli.workflows.inputs import inputs_of

    read = inputs_of(plan.spec, train=target["train"], val=target["val"])
    return {"inputs": {"model": plan.spec.model.model_dump(), "batchnorm": plan.tensors.statistics, **read}}


def identity_of_mix(plan: MixPlan, target: "Target") -> dict[str, Any]:
    """Return what a blend depends on, by names."""
    from glue_cli.checkpoints.run_state import fingerprint_of_checkpoint
    from glue_cli.data.identity import identity_of
    from glue_cli.workflows.inputs import code_of

    assert plan.spec is not None
    sections = plan.spec.model_dump(include={"model", "loss", "objective", "mix", "precision"})
    return {
        **code_of(plan.spec),
        "command": "mix",
        **described(plan),
        **sections,
        "recipe": plan.record,
        "statistics": plan.tensors.statistics,
        "experts": {str(k): fingerprint_of_checkpoint(expert) for k, expert in enumerate(plan.experts)},
        **{split: identity_of(target[split]) for split in ("train", "val")},
    }


def _without_hashes(plan: MixPlan) -> list[str | None]:
    """Return, in place of each expert's sha256, whether its files are younger than the output, as make would."""
    written_ns = max((path.stat().st_mtime_ns for path in plan.destination.paths if path.exists()), default=0)
    return [
        "changed since" if any(stamp.changed_ns > written_ns for stamp in expert.stamps) else None
        for expert in plan.experts
    ]


def _experts_of(plan: MixPlan, digests: Sequence[str | None]) -> list[dict[str, Any]]:
    names = short_names([expert.path for expert in plan.experts])
    return [
        {
            "name": name,
            "sha256": digest,
            "examples": size,
            **({"weights": expert.weights} if expert.weights else {}),
        }
        for expert, name, digest, size in zip(plan.experts, names, digests, sizes_of(plan), strict=True)
    ]


def _base(plan: MixPlan) -> dict[str, str]:
    """Return the sha256 of the model that adapters are merged into; empty if there is none or no hash is wanted."""
    if plan.adapters is None or not plan.adapters.merges or not plan.writing.hashing:
        return {}
    assert plan.adapters.adapted is not None
    wanted = plan.like.said.recipe.base if plan.like else None
    return {"base": StreamedHash(plan.adapters.adapted.base, wanted).finish()}


def _measured(plan: MixPlan, chosen: Choice) -> dict[str, Any]:
    """Return the figures that were measured of the blend, and on which data; empty if nothing was measured."""
    measured = chosen.objective or chosen.loss
    if plan.spec is None or measured is None or measured.val is None:
        return {}
    objective = plan.spec.objective if chosen.objective else "loss"
    figures = {"objective": objective, "val": measured.val, "val_uniform": measured.val_uniform}
    return {"measured": {**figures, "data": plan.spec.data.model_dump(exclude={"root"})}}


def _shared_by_all(plan: MixPlan) -> dict[str, Any]:
    """Return the metadata that all experts share and that hold for the blend too: the model and the classes."""
    shared: dict[str, Any] = {}
    models = [expert.glue.get("model") for expert in plan.experts]
    if models[0] is not None and all(model == models[0] for model in models):
        shared["model"] = models[0]
    if plan.tensors.head_classes:
        shared.pop("model", None)  # its number of classes may differ
    if plan.tensors.classes:
        shared["class_names"] = list(plan.tensors.classes)
    return shared
