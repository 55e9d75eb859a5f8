"""Read one split of a data set as the spec says, and check that it fits the loss."""

from collections.abc import Sequence
from dataclasses import replace

from glue_cli.checkpoints.json_files import read_object
from glue_cli.data import check_format, normalisation, read_dataset
from glue_cli.data.dataset import Ragged
from glue_cli.data.loader import Examples
from glue_cli.foundation.errors import DataError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.spec.normalisation import ImageNormalisation
from glue_cli.spec.resizing import Resizing
from glue_cli.spec.schema import DataSpec, Spec


def read_split(spec: Spec, data: DataSpec, split: str, run: Run) -> Examples:
    """Read a split that every data set has: train or test.

    Args:
        data: the data section of the target or of an expert.
    Raises:
        DataError: the data set is missing, empty or damaged, or its targets do not fit the loss.
        SpecError: the data section does not fit the format or the model.
    """
    examples = find_split(spec, data, split, run)
    assert examples is not None
    return examples


def find_split(spec: Spec, data: DataSpec, split: str, run: Run) -> Examples | None:
    """Read a split as `read_split` does, or return None for a val split that the data set does not have."""
    root = spec.path(data.root)
    dataset = read_dataset(
        data,
        split,
        root=root,
        folder=spec.path("."),
        tokenizer=spec.model_folder,
        resizing=spec.resizing,
        cache=run.cache,
        progress=run.progress,
    )
    if dataset is None:
        return None
    if isinstance(dataset.inputs, Ragged) and (padding := _padding_of_model(spec)) is not None:
        dataset = replace(dataset, inputs=replace(dataset.inputs, padding=padding))
    where = f"'{root if data.root else data.where}'"
    if len(dataset) == 0:
        raise DataError(f"{where} has no {split} examples", hint="check data.root in the spec")
    kind, loss = "labels", "cross_entropy"
    if dataset.labels is None:
        is_text = isinstance(dataset.targets, Ragged)
        kind, loss = ("texts alone", "cross_entropy") if is_text else ("targets of a regression", "mse")
    if loss != spec.loss:
        hint = f"set loss: {loss}"
        if kind == "targets of a regression":
            hint += "; for classes, give the labels as whole numbers or names"
        if kind == "labels":
            hint += "; for a regression, give the targets as floats, or name their column data.columns: {target: NAME}"
        raise DataError(f"{where} has {kind}, which loss: {spec.loss} does not fit", hint=hint)
    if dataset.has_images and spec.resizing:
        _tell_resizing(data, dataset.shape[1:], spec.resizing, run)
    if dataset.has_images and (data.mean is None or data.std is None):
        _tell_normalisation(data, spec.of_images, run)
    return Examples(dataset, *normalisation(data, dataset, spec.of_images))


def _padding_of_model(spec: Spec) -> int | None:
    """Return the token that a model of transformers knows as padding, which some find the end of a text by."""
    said = spec.model_args.get("pad_token_id")
    if said is None and spec.model_folder:
        said = read_object(spec.model_folder / "config.json").get("pad_token_id")
    return said if type(said) is int and said >= 0 else None


def _tell_normalisation(data: DataSpec, stated: ImageNormalisation | None, run: Run) -> None:
    """Report how images are normalised where the spec does not say it."""
    if stated is None:
        usual = check_format(data.format)
        numbers = ImageNormalisation(tuple(data.mean or usual.mean), tuple(data.std or usual.std), data.format)
        text = f"images are normalised as usual for {data.format}: {numbers}; data.mean and data.std set others"
        run.progress(Noted(text))
        return
    run.progress(Noted(f"images are normalised as '{stated.source}' says: {stated}"))
    for warning in stated.warnings:
        run.progress(Noted(warning, warning=True))


def _tell_resizing(data: DataSpec, shape: Sequence[int], stated: Resizing, run: Run) -> None:
    """Report how images are resized where the model's files decide it, and where they would and glue does not.

    Args:
        shape: height and width of the images.
    """
    if data.image_size and (stated.height, stated.width) == (data.image_size, data.image_size):
        run.progress(Noted(f"images are resized as '{stated.source}' says: {stated}"))
    elif tuple(shape) != (stated.height, stated.width):
        text = (
            f"'{stated.source}' resizes images to {stated.height}x{stated.width}, and these are {shape[0]}x{shape[1]}"
        )
        run.progress(Noted(text, warning=True))
