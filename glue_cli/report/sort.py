"""Sort the sources into rows (experiments), repetitions (seeds) and trials (methods, or training from scratch)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TypeVar

from pydantic import ValidationError

from glue_cli.foundation.errors import DataError
from glue_cli.foundation.units import name_of
from glue_cli.report.sources import Source, reason_of
from glue_cli.report.styles import Style, styles_of
from glue_cli.results.evaluate import EvaluatedCheckpoint, EvaluateResult
from glue_cli.results.finetune import FinetuneResult
from glue_cli.results.history import Step
from glue_cli.results.mix import MixResult
from glue_cli.results.record import read_record
from glue_cli.results.train_expert import TrainExpertResult
from glue_cli.spec.goal import Goal, goal_named

SCRATCH = "scratch"
# The name that `glue mix` writes to by default, which says nothing about the method.
_UNNAMED = "prior"

_Record = TypeVar("_Record")


@dataclass
class Trial:
    """One method with one seed.

    Attributes:
        label: the name of the blend's file, such as `spsa-n2`, or `scratch`.
        search: the steps of the search for alpha.
        evaluated: the blend's figures, by split.
    """

    label: str
    mix: MixResult | None = None
    search: list[Step] = field(default_factory=list)
    finetune: FinetuneResult | None = None
    evaluated: dict[str, EvaluatedCheckpoint] = field(default_factory=dict)

    @property
    def goal(self) -> Goal | None:
        """The goal of its search: the loss, unless it has another objective; None if there was no search."""
        if self.mix is None:
            return goal_named("loss") if self.search else None
        return self.mix.goal if self.search or self.mix.steps is not None else None

    @property
    def is_default_search(self) -> bool:
        """Whether alpha comes from the default preset's search, which chooses the optimizer itself."""
        settings = self.mix.settings.get("mix", {}) if self.mix else {}
        return settings.get("search") == "staged" and settings.get("optimizer") == "auto"

    @property
    def begins_validated(self) -> bool:
        """Whether the search validated the uniform blend first, at step 0, as a plain search does."""
        return bool(self.search) and self.search[0].step == 0 and self.search[0].val_loss is not None

    @property
    def kept_step(self) -> int | None:
        """The step whose alpha the search keeps.

        A plain search keeps the alpha with the lowest validation loss, any other search that of its last step. The
        last step of a staged search has the alpha that the guard returned and no minibatch loss; before that step is
        written, this is None.
        """
        if self.begins_validated:
            return min((s.val_loss, s.step) for s in self.search if s.val_loss is not None)[1]
        has_ended = bool(self.search) and (self.search[0].step > 0 or self.search[-1].loss is None)
        return self.search[-1].step if has_ended else None


@dataclass
class Repetition:
    """One seed of a row.

    Attributes:
        trials: the trials, by label.
        experts: each expert's figures, by its name and then by split.
        trained: the results of the experts' training, by the expert's name.
    """

    row: str
    seed: int | None
    trials: dict[str, Trial] = field(default_factory=dict)
    experts: dict[str, dict[str, EvaluatedCheckpoint]] = field(default_factory=dict)
    trained: dict[str, TrainExpertResult] = field(default_factory=dict)

    def trial(self, label: str) -> Trial:
        return self.trials.setdefault(label, Trial(label))


def styles_by_label(repetitions: Sequence[Repetition]) -> dict[str, Style]:
    """Return the style of every label of a row, in the order in which the report lists them."""
    labels = {label for repetition in repetitions for label in repetition.trials}
    trials = {
        label: [repetition.trials[label] for repetition in repetitions if label in repetition.trials]
        for label in labels
    }
    default = {label for label in labels if all(trial.is_default_search for trial in trials[label])}
    return styles_of(labels, default)


def sort_sources(sources: Sequence[Source]) -> dict[str, list[Repetition]]:
    """Return the repetitions of each row, ordered by seed.

    Raises:
        DataError: a result is incomplete, or there are two different ones for the same method and seed.
    """
    by_repetition: dict[tuple[str, int | None], list[Source]] = {}
    for source in sources:
        by_repetition.setdefault((source.row, source.seed), []).append(source)
    rows: dict[str, list[Repetition]] = {}
    for row, seed in sorted(by_repetition, key=lambda key: (key[0], -1 if key[1] is None else key[1])):
        rows.setdefault(row, []).append(_Sorter(Repetition(row, seed), by_repetition[row, seed]).sort())
    return rows


class _Sorter:
    """Assigns a repetition's sources to its trials; blends come first, because the others refer to their names."""

    def __init__(self, repetition: Repetition, sources: Sequence[Source]) -> None:
        self._repetition, self._sources = repetition, sources
        self._label_of_blend: dict[str, str] = {}
        self._label_of_file: dict[str, str] = {}
        self._experts: set[str] = set()
        self._put: dict[tuple[str, str], tuple[Source, object]] = {}

    def sort(self) -> Repetition:
        for source in self._of("glue.mix/1"):
            self._add_mix(source, _parsed(MixResult, source))
        for source in self._of("glue.finetune/1"):
            finetune = _parsed(FinetuneResult, source)
            label = self._label(finetune.start, finetune.method)
            if self._is_new("finetune", label, source, finetune):
                self._repetition.trial(label).finetune = finetune
        for source in self._of("glue.train-expert/1"):
            trained = _parsed(TrainExpertResult, source)
            self._experts.add(name_of(trained.output))
            self._repetition.trained[name_of(trained.output)] = trained
        for source in self._of("glue.evaluate/1"):
            for evaluation in _parsed(EvaluateResult, source).results:
                self._add_evaluation(evaluation)
        for source in self._of("glue.history/1"):
            self._add_history(source)
        return self._repetition

    def _of(self, schema: str) -> list[Source]:
        return [source for source in self._sources if source.schema_name == schema]

    def _add_mix(self, source: Source, mix: MixResult) -> None:
        name = name_of(mix.output)
        label = mix.method if name == _UNNAMED else name
        if self._is_new("blend", label, source, mix):
            self._repetition.trial(label).mix = mix
        self._label_of_blend[name] = label
        self._label_of_file[_stem(source)] = label
        self._experts |= {name_of(expert.path) for expert in mix.experts}

    def _add_evaluation(self, evaluation: EvaluatedCheckpoint) -> None:
        name = name_of(evaluation.checkpoint)
        folder = PurePath(evaluation.checkpoint).parent.name
        if name in self._experts or name.startswith("expert") or folder == "experts":
            self._repetition.experts.setdefault(name, {})[evaluation.split] = evaluation
        elif not name.endswith("finetuned"):  # a finetuned model's figures are in its history
            self._repetition.trial(self._label(evaluation.checkpoint)).evaluated[evaluation.split] = evaluation

    def _add_history(self, source: Source) -> None:
        first = source.objects[0]
        if first.get("command") == "mix" and "step" in first:
            label = self._label_of_search(source, str(first.get("method")))
            steps = [_validated(Step, source, line) for line in source.objects]
            if any(len(step.alpha) != len(steps[0].alpha) for step in steps):
                raise _damaged(source, "alpha does not have the same length in all lines")
            if self._is_new("search", label, source, steps[-1]):
                self._repetition.trial(label).search = steps
        elif first.get("command") == "finetune":
            label = self._label(str(first.get("start")))
            trial = self._repetition.trial(label)
            if trial.finetune is None:  # the command is still running, or its result was not kept
                result = {"start": str(first.get("start")), "history": source.objects}
                trial.finetune = _validated(FinetuneResult, source, result)

    def _label(self, checkpoint: str, method: str | None = None) -> str:
        name = name_of(checkpoint)
        return self._label_of_blend.get(name) or (method if method and name == _UNNAMED else name)

    def _label_of_search(self, source: Source, method: str) -> str:
        """Return the label of a search: that of its output, of the result with the same file name, or its method's.

        If just one blend was made by the method, the search is taken to be that blend's.
        """
        output = source.objects[0].get("output")
        if output is not None:
            return self._label(str(output), method)
        if _stem(source) in self._label_of_file:
            return self._label_of_file[_stem(source)]
        own = re.sub(r"[-_.](mix|history)$", "", _stem(source))
        alike = [trial.label for trial in self._repetition.trials.values() if trial.mix and trial.mix.method == method]
        if own in self._repetition.trials or len(alike) != 1:
            return own if own.startswith(method) else method
        return alike[0]

    def _is_new(self, what: str, label: str, source: Source, result: object) -> bool:
        """Tell whether this is the first result of a kind for a label; an identical second one is ignored.

        Raises:
            DataError: there already is a different one.
        """
        other, before = self._put.setdefault((what, label), (source, result))
        if before != result:
            seed = "" if self._repetition.seed is None else f" with seed {self._repetition.seed}"
            raise DataError(
                f"two files hold a {what} '{label}' of '{self._repetition.row}'{seed}",
                items=[other.path, source.path],
                hint="give one of them, or keep runs in folders of their own, such as ROW/seed-0",
            )
        return other is source


def _stem(source: Source) -> str:
    return PurePath(source.name).stem


def _parsed(kind: type[_Record], source: Source) -> _Record:
    return _validated(kind, source, source.objects[0])


def _validated(kind: type[_Record], source: Source, json_object: object) -> _Record:
    try:
        return read_record(kind, json_object)
    except ValidationError as error:
        raise _damaged(source, reason_of(error)) from None


def _damaged(source: Source, what: str) -> DataError:
    return DataError(f"'{source.path}' is damaged: {what}", hint="write it again, or leave it out")
