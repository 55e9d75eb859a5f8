"""Read one split of a data set as the spec says, and check that it fits the loss."""

from pathlib import Path

from glue_cli.data import normalisation, read_dataset
from glue_cli.data.dataset import Ragged
from glue_cli.data.loader import Examples
from glue_cli.foundation.errors import DataError
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.spec.normalisation import ImageNormalisation
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
    _tell_normalisation(data, spec.of_images if dataset.has_images else None, run)
    return Examples(dataset, *normalisation(data, dataset, spec.of_images))


def _tell_normalisation(data: DataSpec, stated: ImageNormalisation | None, run: Run) -> None:
    """Report how images are normalised, if the model's files decide it."""
    if stated and (data.mean is None or data.std is None):
        run.progress(Noted(f"images are normalised as '{stated.source}' says: {stated}"))
        for warning in stated.warnings:
            run.progress(Noted(warning, warning=True))


def _tokenizer_folder(spec: Spec) -> Path | None:
    """Return the folder of a transformers model, which also holds the tokenizer."""
    path = spec.model.args.get("path")
    return spec.path(path) if spec.model.arch.startswith("transformers:") and isinstance(path, str) else None
