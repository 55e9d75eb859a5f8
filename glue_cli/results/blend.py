"""What a blend's metadata say of how it was made, as far as it takes to make it again."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]


_SUM_TOLERANCE = 1e-6  # as for --alpha


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Rules(_Section):
    """What was said about tensors, as `glue_cli.blend.rules.TensorRules` has it; experts by their numbers.

    Whether BatchNorm's statistics were averaged or taken anew is not said here: `refreshed` tells it.
    """

    include: list[str] = []
    exclude: list[str] = []
    copy_from: Annotated[int | None, Field(ge=0)] = None
    head: str | None = None
    head_policy: str | None = None
    classes: list[str] = []
    batchnorm: str | None = None


class Refreshed(_Section):
    """On what BatchNorm's statistics were taken anew, and how.

    Attributes:
        data: the sha256 of the target's training examples.
        arch, args: the model that ran; without the folders that its arguments name.
    """

    data: Sha256
    arch: str
    args: dict[str, Any]
    batch_size: Count
    precision: Literal["fp32", "bf16"]
    threads: Count


class RecordedRecipe(_Section):
    """How the tensors of a blend came about, as its metadata have it.

    Attributes:
        groups: patterns of tensors that have an alpha of their own, by the group's name.
        base: the sha256 of the model that adapters were merged into.
    """

    rules: Rules = Rules()
    groups: dict[str, str | list[str]] = {}
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    max_shard_bytes: Count | None = None
    base: Sha256 | None = None
    refreshed: Refreshed | None = None


class BlendExpert(BaseModel):
    """An expert of a blend; `weights` is which of several sets of weights in its file was blended."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    sha256: Sha256
    weights: str | None = None


class BlendMetadata(BaseModel):
    """A blend's metadata; what is not needed to make it again is passed over.

    Attributes:
        alpha: [K], the mean over groups; groups: each group's alpha [K], where there are several.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    alpha: list[float] = Field(min_length=1)
    groups: dict[str, list[float]] = {}
    experts: list[BlendExpert]
    seed: Annotated[int, Field(ge=0)]
    recipe: RecordedRecipe

    @model_validator(mode="after")
    def _of_one_length(self) -> "BlendMetadata":
        if any(len(alpha) != len(self.experts) for alpha in self.alphas):
            raise ValueError("coefficients and experts differ in number")
        if any(min(alpha) < 0 or abs(sum(alpha) - 1) > _SUM_TOLERANCE for alpha in self.alphas):
            raise ValueError("coefficients are 0 or more and sum to 1")
        return self

    @property
    def alphas(self) -> list[list[float]]:
        """The coefficients [G, K]."""
        return list(self.groups.values()) or [self.alpha]
