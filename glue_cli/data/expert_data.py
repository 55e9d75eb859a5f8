"""The examples that an expert is trained on: a data set of its own, or its share of the target's."""

from glue_cli.data import check_format
from glue_cli.data.loader import Examples
from glue_cli.data.partition import dirichlet_share, free_indices
from glue_cli.data.splits import read_split
from glue_cli.data.target import divide
from glue_cli.foundation.errors import SpecError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.spec.schema import DataSpec, Spec


def read_expert(spec: Spec, expert: int, run: Run) -> Examples:
    """Read an expert's training data: its own data set, or its Dirichlet share of the data's train split.

    The share is a pure function of the spec, the seed and the expert's number.
    """
    assert spec.experts is not None
    if spec.experts.members:
        return read_split(spec, _like_target(spec.experts.members[expert].data, spec), "train", run)
    assert spec.experts.size is not None
    whole = read_split(spec, spec.data, "train", run)
    train, val, _ = divide(spec, whole, run)
    labels = whole.dataset.labels
    if labels is None:
        raise SpecError(
            "experts.dirichlet shares the data by class, but this data set has no labels",
            hint="give each expert data of its own in experts.members",
        )
    share = dirichlet_share(
        labels,
        free_indices(len(whole), train, val),
        size=spec.experts.size,
        concentration=spec.experts.dirichlet,
        n_classes=len(whole.dataset.class_names or ()) or int(labels.max()) + 1,
        seed=spec.seed,
        expert=expert,
    )
    if any(share.shortfall):
        short = [label for label, n in enumerate(share.shortfall) if n]
        which = f"class {short[0]} has" if len(short) == 1 else f"{len(short)} classes have"
        lack = f"{sum(share.shortfall)} examples too few for this expert's share"
        run.progress(Noted(f"{which} {lack}; other classes make up for them"))
    return whole.subset(share.indices)


def _like_target(member: DataSpec, spec: Spec) -> DataSpec:
    """Return a member's data section, with the target's normalisation and limits of texts where it sets none.

    All members of a blend take the same kind of input.
    """
    updates: dict[str, object] = {}
    target = spec.data
    own, known = check_format(member.format), spec.of_images or check_format(target.format)
    mean, std = target.mean or list(known.mean), target.std or list(known.std)
    if member.mean is None and member.std is None and (tuple(mean), tuple(std)) != (own.mean, own.std):
        updates |= {"mean": mean, "std": std}
    for field in ("max_length", "max_characters"):
        if getattr(member, field) is None and field in own.takes:
            updates[field] = getattr(target, field)
    return member.model_copy(update=updates)
