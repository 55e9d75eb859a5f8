"""The part of a blend's metadata that is needed to make the same blend again."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]
Sample = Literal["train", "some of train", "some of train and val"]


_SUM_TOLERANCE = 1e-6  # the same as for --alpha


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Rules(_Section):
    """The user's rules for tensors, as in `glue_cli.blend.tensor_rules.TensorRules`, but with the experts' numbers.

    They do not say whether BatchNorm's statistics were averaged or recomputed: `RecordedRecipe.refreshed` does.
    """

    include: list[str] = []
    exclude: list[str] = []
    copy_from: Annotated[int | None, Field(ge=0)] = None
    head: str | None = None
    head_policy: str | None = None
    classes: list[str] = []
    batchnorm: str | None = None


class Refreshed(_Section):
    """The data and settings with which BatchNorm's statistics were recomputed.

    Attributes:
        data: the sha256 of the target's training examples.
        arch, args: the model that was run; the arguments without folders.
        sample: which of the target's examples were used.
    """

    data: Sha256
    arch: str
    args: dict[str, Any]
    batch_size: Count
    sample: Sample = "train"
    precision: Literal["fp32", "bf16"]
    threads: Count


class RecordedRecipe(_Section):
    """How a blend's tensors were made, as its metadata record it.

    Attributes:
        groups: for each group of tensors with its own alpha, the patterns of their names; or the blocks of the model.
        base: the sha256 of the model that adapters were merged into.
        refreshed: None if BatchNorm's statistics were not recomputed.
    """

    rules: Rules = Rules()
    groups: dict[str, str | list[str]] | Literal["blocks"] = {}
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    max_shard_bytes: Count | None = None
    base: Sha256 | None = None
    refreshed: Refreshed | None = None


class BlendExpert(BaseModel):
    """An expert of a blend; `weights` names the blended set of weights if its file has several."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    sha256: Sha256
    weights: str | None = None


class BlendMetadata(BaseModel):
    """A blend's metadata, without what is not needed to make it again.

    Attributes:
        alpha: [K], the mean over the groups.
        groups: each group's own alpha [K], if there are several groups.
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
            raise ValueError("the number of coefficients is not the number of experts")
        if any(min(alpha) < 0 or abs(sum(alpha) - 1) > _SUM_TOLERANCE for alpha in self.alphas):
            raise ValueError("coefficients have to be 0 or more and sum to 1")
        return self

    @property
    def alphas(self) -> list[list[float]]:
        """The coefficients [G, K]."""
        return list(self.groups.values()) or [self.alpha]
