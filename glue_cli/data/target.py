"""The target's data: its train, val and test examples, each split read once."""

from functools import cached_property

from torch import Tensor

from glue_cli.checkpoints.classes import listed
from glue_cli.data.classes import Classes, classes_without_example, doubt_about
from glue_cli.data.loader import Examples
from glue_cli.data.partition import draw_val, target_split
from glue_cli.data.splits import find_split, read_split
from glue_cli.foundation.progress import Noted
from glue_cli.foundation.run import Run
from glue_cli.spec.schema import Spec


class Target:
    """The target's examples by split; a split is read on first use and kept.

    The train and val examples are read together: most data sets have no val split, and part of the train split is
    used instead.

    Args:
        classes: what the labels are renumbered to; None leaves them as in the data.
    """

    def __init__(self, spec: Spec, run: Run, classes: Classes | None = None) -> None:
        self._spec, self._run, self._classes = spec, run, classes

    def __getitem__(self, split: str) -> Examples:
        """Return the examples of a split: train, val or test.

        Raises:
            DataError: the data set is missing or damaged, or has classes that are not in `classes`.
            SpecError: the spec asks for more examples than there are.
        """
        return self._test if split == "test" else self._train_and_val[split]

    @cached_property
    def _test(self) -> Examples:
        return self._renumbered("test", read_split(self._spec, self._spec.data, "test", self._run))

    @cached_property
    def _train_and_val(self) -> dict[str, Examples]:
        whole = read_split(self._spec, self._spec.data, "train", self._run)
        train, val, own_val = divide(self._spec, whole, self._run)
        whole = self._renumbered("train", whole)
        return {
            "train": whole.subset(train),
            "val": self._renumbered("val", own_val) if own_val else whole.subset(val),
        }

    def _renumbered(self, split: str, examples: Examples) -> Examples:
        """Return a split's examples with labels renumbered to the classes; warn of classes without an example."""
        if lacking := classes_without_example(examples.dataset):
            n_classes = len(examples.class_names or ())
            text = f"{split} has no example of {listed(lacking)} ({len(lacking)} of {n_classes} classes)"
            self._run.progress(Noted(text, warning=True))
        if self._classes is None:
            return examples
        of_library = self._spec.model_folder is not None
        if doubt := doubt_about(examples.dataset, self._classes, of_library=of_library):
            self._run.progress(Noted(f"{split}: {doubt}", warning=True))
        return examples.renumbered(self._classes, f"'{self._spec.data.where}'")


def divide(spec: Spec, whole: Examples, run: Run) -> tuple[Tensor, Tensor, Examples | None]:
    """Divide the train split's examples into the target's training and validation sets.

    Args:
        whole: the train split.
    Returns:
        the indices of its training and of its validation examples, and the val split of the data set, if it has one.
    """
    own_val = find_split(spec, spec.data, "val", run)
    train, val = target_split(len(whole), spec.data.target, seed=spec.seed, has_val=own_val is not None)
    if own_val and spec.data.target.val is not None:
        own_val = own_val.subset(draw_val(len(own_val), spec.data.target.val, seed=spec.seed))
    return train, val, own_val
