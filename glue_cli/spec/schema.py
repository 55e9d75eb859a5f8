"""The schema of `glue.yaml`, with all defaults. `yaml_file` reads the file itself."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from glue_cli.foundation.own_modules import files_of_modules
from glue_cli.foundation.user_code import PREFIX
from glue_cli.spec.budget import Budget, parse_budget
from glue_cli.spec.goal import GOALS
from glue_cli.spec.normalisation import ImageNormalisation
from glue_cli.spec.resizing import Resizing

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
# What a column of a table is read as.
Role = Literal["image", "text", "text_pair", "prompt", "completion", "messages", "inputs", "label", "target"]
Columns = Annotated[
    list[str],
    BeforeValidator(
        lambda names: [names] if isinstance(names, str) else names, json_schema_input_type=str | list[str]
    ),
]


def _check_budget(given: Any) -> Any:
    """Check a budget and return it as text, since YAML reads 300 as a number."""
    if given is None:
        return None
    text = str(given)
    parse_budget(text)
    return text


# First the values that section 5 of the paper states, then those that it leaves open.
_PAPER: dict[str, Any] = {
    "optimizer": "adam",
    "lr": 0.01,
    "betas": [0.9, 0.99],
    "n_directions": 1,
    "search": "plain",
    # our choices
    "momentum": 0.9,
    "directions": "gaussian",
    "zero_sum": False,
    "mu": 0.01,
    "batch_size": 64,
    "steps": 1000,
    "validate_every": 50,
    "patience": 4,
    "groups": {},
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    # What did best in examples/benchmarks/search/README.md; lr, directions and zero_sum matter only with Adam.
    "default": {
        **_PAPER,
        "search": "staged",
        "optimizer": "auto",
        "zero_sum": True,
        "lr": 0.1,
        "mu": 0.1,
        "steps": 300,
        "validate_every": 5,
        "patience": 2,
        "groups": "auto",
    },
}


FINETUNE_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"lr": 0.001, "keep": "last"},  # both our choices; the paper says neither
    "default": {"lr": "auto", "keep": "best"},
}


def _check_lr(given: Any) -> Any:
    """Check and return the lr for finetuning: `auto`, or a number above 0."""
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if given == "auto" or is_number and 0 < given <= sys.float_info.max:
        return float(given) if is_number else given
    raise ValueError(f"wanted a number greater than 0 or 'auto', found {given!r}")


def _filled(given: Any, presets: dict[str, dict[str, Any]]) -> Any:
    """Fill in the missing keys of a section from its preset; from the default preset if it names no known one."""
    if not isinstance(given, dict):
        return given
    preset = given.get("preset")
    return {**presets[preset if preset in ("default", "paper") else "default"], **given}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelSpec(_Section):
    """The architecture, as `glue_cli.models.check_architecture` takes it, and its arguments."""

    arch: str
    args: dict[str, Any] = {}


class TargetSpec(_Section):
    """How many training and validation examples of the target domain there are, drawn IID from the train split."""

    train: Count | None = None
    val: Count | None = None


class DataSpec(_Section):
    """A data set: a name of `glue_cli.data.FORMATS`, or `python:MODULE:FUNCTION`, and where it lies.

    `root` may be left out, and is then empty, where a function of the user's brings the data.
    """

    format: str
    root: Annotated[str, Field(validate_default=True)] = ""
    target: TargetSpec = TargetSpec()
    mean: list[float] | None = None
    std: list[Rate] | None = None
    image_size: Count | None = None
    max_length: Count | None = None
    max_characters: Count | None = None
    splits: dict[Literal["train", "val", "test"], str] = {}
    columns: dict[Role, Columns] = {}

    @property
    def where(self) -> str:
        """Where the data come from, for messages."""
        return self.root or self.format

    @field_validator("root")
    @classmethod
    def _root_unless_python(cls, root: str, info: ValidationInfo) -> str:
        if not root and not info.data.get("format", "").startswith(PREFIX):
            raise PydanticCustomError("missing", "Field required")
        return root


class MemberSpec(_Section):
    """An expert with a data set of its own, and perhaps other arguments of the model: `{num_classes: 6}`."""

    name: str
    data: DataSpec
    args: dict[str, Any] = {}


# What experts start from if not from a checkpoint.
INITS = ("shared", "independent")


class ExpertsSpec(_Section):
    """The experts: `count` Dirichlet shares of the data's train split, or `members` with data of their own."""

    count: Count | None = None
    size: Count | None = None
    dirichlet: Rate = 1.0
    init: str = "shared"
    members: list[MemberSpec] = []

    @model_validator(mode="after")
    def _one_kind(self) -> "ExpertsSpec":
        if self.members and (self.count or self.size):
            raise ValueError("'members' excludes 'count' and 'size': an expert has a data set of its own or a share")
        if not self.members and not (self.count and self.size):
            raise ValueError("wanted 'count' and 'size', or 'members'")
        return self

    @property
    def n_experts(self) -> int:
        return len(self.members) or self.count or 0


class AugmentSpec(_Section):
    """Random crop after padding by `crop` pixels, and a random horizontal flip."""

    crop: Annotated[int, Field(ge=0)] = 0
    flip: bool = False


class TrainSpec(_Section):
    """How an expert is trained: Adam on all parameters."""

    epochs: Count = 40
    batch_size: Count = 64
    lr: Rate = 0.001
    augment: AugmentSpec = AugmentSpec()


class FinetuneSpec(_Section):
    """How the prior is finetuned: Adam on all parameters; what is not given comes from the preset.

    lr `auto` is found by a short trial on validation data. `keep` the last epoch, or the best on validation, which is
    the start unless an epoch is better than it by more than one standard error (two on fewer than 50 examples).
    """

    preset: Literal["default", "paper"] = "default"
    epochs: Count = 20
    batch_size: Count = 64
    lr: Annotated[float | Literal["auto"], PlainValidator(_check_lr, json_schema_input_type=float | Literal["auto"])]
    augment: AugmentSpec = AugmentSpec()
    keep: Literal["last", "best"]

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        return _filled(given, FINETUNE_PRESETS)


class MixSpec(_Section):
    """How alpha is learned; what is not given comes from the preset.

    A plain search runs from the uniform blend for `steps`, or until the validation loss, taken every `validate_every`
    steps, has not improved `patience` times running; the alpha with the lowest validation loss is kept. A staged one
    chooses between starts, and guards the end. A `budget` takes the place of `steps`, and in a staged search that of
    the plateau, and counts `validate_every` in steps of Gauss-Newton: steps that tell less are validated more seldom.
    Each of `groups`, patterns of tensor names, has an alpha of its own; `auto` lets spsa find them, the blocks of the
    model, where it takes Gauss-Newton's steps, and `none` is one alpha for all.
    """

    preset: Literal["default", "paper"] = "default"
    search: Literal["plain", "staged"]
    budget: Annotated[str | None, BeforeValidator(_check_budget, json_schema_input_type=str | int | float | None)] = (
        None
    )
    optimizer: Literal["auto", "adam", "momentum"]
    lr: Rate
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)]
    momentum: Decay
    directions: Literal["gaussian", "rademacher"]
    zero_sum: bool
    n_directions: Count
    mu: Rate
    batch_size: Count
    steps: Count
    validate_every: Count
    patience: Count
    bn_statistics: Literal["running", "batch"] = "running"
    bn_gradient: bool = True
    groups: Literal["auto", "none"] | dict[str, str | list[str]]

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        return _filled(given, PRESETS)

    @model_validator(mode="after")
    def _budget_of_a_minibatch(self) -> "MixSpec":
        budget = self.parsed_budget
        if budget and budget.limit < {"forwards": 1, "examples": self.batch_size, "seconds": 0}[budget.unit]:
            raise ValueError(f"budget {self.budget} is less than a minibatch of {self.batch_size}")
        return self

    @property
    def named_groups(self) -> dict[str, str | list[str]]:
        """The groups that the spec lists by name."""
        return self.groups if isinstance(self.groups, dict) else {}

    @property
    def parsed_budget(self) -> Budget | None:
        return parse_budget(self.budget) if self.budget is not None else None


class Spec(_Section):
    """The whole of `glue.yaml`.

    `loss` is what experts and the finetuned model are trained by; `objective` what mixing searches for: the least
    loss, or the most of another figure; see `glue_cli.spec.goal.Goal`.
    """

    model: ModelSpec
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    objective: str = "loss"
    data: DataSpec
    experts: ExpertsSpec | None = None
    train: TrainSpec = TrainSpec()
    mix: MixSpec = Field(default_factory=lambda: MixSpec.model_validate({}))
    finetune: FinetuneSpec = Field(default_factory=lambda: FinetuneSpec.model_validate({}))
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    _folder: Path = PrivateAttr(default=Path("."))
    _fetched: dict[str, Path] = PrivateAttr(default_factory=dict)
    _of_images: ImageNormalisation | None = PrivateAttr(default=None)
    _resizing: Resizing | None = PrivateAttr(default=None)

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, objective: str) -> str:
        if objective not in GOALS and not objective.startswith(PREFIX):
            known = ", ".join(f"'{name}'" for name in GOALS)
            raise ValueError(f"wanted {known} or {PREFIX}MODULE:FUNCTION, found '{objective}'")
        return objective

    def of_expert(self, expert: int) -> "Spec":
        """Return the spec for training one expert, with this expert's own arguments of the model."""
        members = self.experts.members if self.experts else []
        if not members or not members[expert].args:
            return self
        return self.with_model_args(**members[expert].args)

    def path(self, written: str) -> Path:
        """Return the real path for one in the spec: where it was fetched to, or relative to the spec's folder."""
        return self._fetched.get(written) or self._folder / os.path.expanduser(written)

    @property
    def data_sets(self) -> list[DataSpec]:
        """The target's data and the experts' own."""
        return [self.data, *(member.data for member in (self.experts.members if self.experts else []))]

    @property
    def code_files(self) -> Sequence[Path]:
        """The files beside the spec of the user's modules that it names, and of all that these import."""
        named = [self.model.arch, self.objective, *(data.format for data in self.data_sets)]
        modules = [name.removeprefix(PREFIX).partition(":")[0] for name in named if name.startswith(PREFIX)]
        sound = [module for module in dict.fromkeys(modules) if all(map(str.isidentifier, module.split(".")))]
        return files_of_modules(tuple(sound), self.path(".").resolve())

    def located_in(self, folder: Path) -> "Spec":
        """Return this spec with its paths relative to `folder`."""
        located = self.model_copy()
        located._folder = folder
        return located

    def with_fetched(self, places: Mapping[str, Path]) -> "Spec":
        """Return this spec with the local paths of things it names that had to be fetched."""
        changed = self.model_copy()
        changed._fetched = {**self._fetched, **places}
        return changed

    @property
    def model_args(self) -> dict[str, Any]:
        """`model.args`, with the local folder as `path` if that was fetched."""
        path = self.model.args.get("path")
        fetched = self._fetched.get(path) if isinstance(path, str) else None
        return {**self.model.args, **({"path": str(fetched)} if fetched else {})}

    def with_model_args(self, **args: Any) -> "Spec":
        """Return this spec with other arguments of the model."""
        model = self.model.model_copy(update={"args": {**self.model.args, **args}})
        return self.model_copy(update={"model": model})

    @property
    def start_of_experts(self) -> Path | None:
        """The checkpoint that `experts.init` names, if it names one."""
        return self.path(self.experts.init) if self.experts and self.experts.init not in INITS else None

    @property
    def model_folder(self) -> Path | None:
        """The folder that a model of transformers is built from, with its tokenizer; None for other models."""
        path = self.model.args.get("path")
        return self.path(path) if self.model.arch.startswith("transformers:") and isinstance(path, str) else None

    @property
    def of_images(self) -> ImageNormalisation | None:
        """The normalisation of images from the model's files, used if the spec does not give one."""
        return self._of_images

    @property
    def resizing(self) -> Resizing | None:
        """How the model's files resize images, used where this gives `data.image_size`."""
        return self._resizing

    def resizing_as(self, resizing: Resizing) -> "Spec":
        """Return this spec with the way in which the model's files resize images."""
        changed = self.model_copy()
        changed._resizing = resizing
        return changed

    def normalising(self, of_images: ImageNormalisation) -> "Spec":
        """Return this spec with the normalisation that the model's files ask for."""
        changed = self.model_copy()
        changed._of_images = of_images
        return changed
