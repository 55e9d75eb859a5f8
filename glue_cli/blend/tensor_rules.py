"""What a user says about tensors: what is blended, and what becomes of heads and BatchNorm. Imports nothing."""

from dataclasses import dataclass

HEAD_POLICIES = ("blend", "from:EXPERT", "align", "reset")

BATCHNORM_POLICIES = ("auto", "average", "refresh", "from:EXPERT")


@dataclass(frozen=True)
class TensorRules:
    """What the command line says about tensors.

    Attributes:
        include, exclude: patterns of tensors to blend, and not to blend; the others are copied from `copy_from`.
        head: a pattern of the head's tensors; head_policy: one of `HEAD_POLICIES`.
        classes: the class names of the target.
        batchnorm: one of `BATCHNORM_POLICIES`.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    copy_from: str | None = None
    head: str | None = None
    head_policy: str | None = None
    classes: tuple[str, ...] = ()
    batchnorm: str = "auto"


NO_RULES = TensorRules()
