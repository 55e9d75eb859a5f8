"""What the commands write, as far as a report needs it; keys that it does not know are kept."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from glue_cli.spec.goal import goal_named

Settings = dict[str, Any]


class Read(BaseModel):
    """Keys that are not named here are kept, and found by `figure`."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    def figure(self, key: str) -> float | None:
        """Return a figure of merit, such as `test_accuracy`; None where there is none, or it was not finite."""
        value = (self.model_extra or {}).get(key)
        return float(value) if isinstance(value, int | float) else None


class Result(Read):
    """What the results of all commands share.

    Attributes:
        glue, model, data, settings, precision, threads: what it takes to run it again.
    """

    glue: str | None = None
    model: Settings = {}
    data: Settings = {}
    settings: Settings = {}
    precision: str | None = None
    threads: int | None = None


class Expert(Read):
    path: str
    sha256: str | None = None
    examples: int | None = None


class Cost(BaseModel):
    """What a method spent; forwards and backwards are of minibatches, `peak_bytes` of the GPU, or of the process."""

    forwards: int = 0
    validation_forwards: int = 0
    backwards: int = 0
    examples: int = 0
    wall_s: float | None = None
    peak_bytes: int | None = None

    @property
    def budget(self) -> int:
        """What was spent in forwards: a backward takes about as long as two."""
        return self.forwards + 2 * self.backwards


class Mix(Result):
    """`glue.mix/1`.

    Attributes:
        steps: those of the search; None where there was none.
        loss: the validation loss found, and that of the uniform blend; without them where there is another objective.
        objective: this one's name, and the same figures of it, of which more is better.
    """

    method: str
    alpha: list[float] = Field(min_length=1)
    experts: list[Expert]
    output: str
    cost: Cost
    steps: int | None = None
    loss: dict[str, float | None] = {}
    objective: Settings = {}

    @property
    def goal(self) -> str:
        """What the search sought: the name of the objective, `loss` where it tells none."""
        return str(self.objective.get("name", "loss"))

    @property
    def uniform_loss(self) -> float | None:
        """What the search minimises, of the uniform blend on the held-out examples; None where that is not told."""
        if self.objective:
            figure = self.objective.get("val_uniform")
            return None if figure is None else goal_named(self.goal).figure(figure)  # it is its own inverse
        return self.loss.get("val_uniform")

    @model_validator(mode="after")
    def _of_one_length(self) -> "Mix":
        if len(self.alpha) != len(self.experts):
            raise ValueError(f"{len(self.alpha)} coefficients for {len(self.experts)} experts")
        return self


class Step(Read):
    """A line of a search's history: what is minimised, `loss` of the minibatch, `val_loss` of the validation split."""

    step: int = Field(ge=0)
    alpha: list[float] = Field(min_length=1)
    loss: float | None = None
    val_loss: float | None = None
    forwards: int = 0
    backwards: int | None = None
    method: str = ""

    @property
    def budget(self) -> int:
        """As `Cost.budget`; the first versions did not write the backwards, of which fullgrad makes one a step."""
        backwards = self.backwards if self.backwards is not None else self.step * (self.method == "fullgrad")
        return self.forwards + 2 * backwards


class Epoch(Read):
    """A line of a finetuning's history, with its figures of merit; epoch 0 is the prior."""

    epoch: int = Field(ge=0)


class Finetune(Result):
    """`glue.finetune/1`.

    Attributes:
        method: that of the blend that it started from, where it knows.
    """

    start: str
    method: str | None = None
    output: str | None = None
    history: list[Epoch] = Field(min_length=1)


class Evaluation(Read):
    checkpoint: str
    split: str


class Evaluate(Result):
    """`glue.evaluate/1`."""

    results: list[Evaluation]


class TrainExpert(Result):
    """`glue.train-expert/1`."""

    output: str
    examples: int | None = None
