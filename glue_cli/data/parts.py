"""The examples that a command works on: which parts of which data set, and their batches on the device."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from glue_cli.data import check_format, normalisation, read_dataset
from glue_cli.data.dataset import Ragged
from glue_cli.data.loader import Examples
from glue_cli.data.partition import dirichlet_share, draw_val, free_indices, target_split
from glue_cli.foundation.errors import DataError, SpecError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.spec.schema import DataSpec, Spec


def read_target(spec: Spec, splits: Sequence[str], run: Run) -> dict[str, Examples]:
    """Read those of the target's train, val and test examples that are asked for.

    Raises:
        DataError: the data set is missing or damaged.
        SpecError: the spec asks for more examples than there are.
    """
    found: dict[str, Examples] = {}
    if "test" in splits:
        found["test"] = _read(spec, spec.data, "test", run)
    if "train" in splits or "val" in splits:
        whole = _read(spec, spec.data, "train", run)
        train, val, own_val = _split(spec, whole, run)
        found["train"] = whole.subset(train)
        found["val"] = own_val or whole.subset(val)
    return {split: found[split] for split in splits}


def read_expert(spec: Spec, expert: int, run: Run) -> Examples:
    """Read an expert's training data: its own data set, or its Dirichlet share of the data's train split.

    The share is a pure function of the spec, the seed and the expert's number.
    """
    assert spec.experts is not None
    if spec.experts.members:
        return _read(spec, _like_target(spec.experts.members[expert].data, spec.data), "train", run)
    assert spec.experts.size is not None
    whole = _read(spec, spec.data, "train", run)
    train, val, _ = _split(spec, whole, run)
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


def _read(spec: Spec, data: DataSpec, split: str, run: Run) -> Examples:
    examples = _find(spec, data, split, run)
    assert examples is not None
    return examples


def _find(spec: Spec, data: DataSpec, split: str, run: Run) -> Examples | None:
    """Read a split, or return None for a val split that is not there."""
    root = spec.path(data.root)
    dataset = read_dataset(
        data,
        split,
        root=root,
        folder=spec.path("."),
        tokenizer=_tokenizer_folder(spec),
        cache=run.cache,
        progress=run.progress,
    )
    if dataset is None:
        return None
    where = f"'{root if data.root else data.where}'"
    if len(dataset) == 0:
        raise DataError(f"{where} has no {split} examples", hint="check data.root in the spec")
    kind, loss = "labels", "cross_entropy"
    if dataset.labels is None:
        is_text = isinstance(dataset.targets, Ragged)
        kind, loss = ("texts alone", "cross_entropy") if is_text else ("targets of a regression", "mse")
    if loss != spec.loss:
        raise DataError(f"{where} has {kind}, which loss: {spec.loss} does not fit", hint=f"set loss: {loss}")
    return Examples(dataset, *normalisation(data, dataset))


def _tokenizer_folder(spec: Spec) -> Path | None:
    """Return the folder of a model of transformers, which has the tokenizer too."""
    path = spec.model.args.get("path")
    return spec.path(path) if spec.model.arch.startswith("transformers:") and isinstance(path, str) else None


def _split(spec: Spec, whole: Examples, run: Run) -> tuple[Tensor, Tensor, Examples | None]:
    """Return the indices of the target's training and validation examples, and its own val split if it has one."""
    target, own_val = spec.data.target, _find(spec, spec.data, "val", run)
    train, val = target_split(len(whole), target, seed=spec.seed, has_val=own_val is not None)
    if own_val and target.val is not None:
        own_val = own_val.subset(draw_val(len(own_val), target.val, seed=spec.seed))
    return train, val, own_val


def _like_target(member: DataSpec, target: DataSpec) -> DataSpec:
    """Return a member's data section with the target's normalisation and length of texts, unless it says otherwise.

    A blend has one kind of input.
    """
    updates: dict[str, object] = {}
    own, known = check_format(member.format), check_format(target.format)
    mean, std = target.mean or list(known.mean), target.std or list(known.std)
    if member.mean is None and member.std is None and (tuple(mean), tuple(std)) != (own.mean, own.std):
        updates |= {"mean": mean, "std": std}
    if member.max_length is None and "max_length" in own.takes:
        updates["max_length"] = target.max_length
    return member.model_copy(update=updates)
