"""What a reader needs to repeat an experiment: the settings of every command, and the experts' hashes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glue_cli.foundation.units import name_of
from glue_cli.report.sort import Repetition, styles_by_label
from glue_cli.results.finetune import FinetuneResult
from glue_cli.results.mix import MixResult
from glue_cli.results.train_expert import TrainExpertResult


def list_settings(repetitions: Sequence[Repetition]) -> list[tuple[str, str, str]]:
    """Return (key, value, where it applies) for every setting in the results; it applies to the experts or methods."""
    names = {label: style.name for label, style in styles_by_label(repetitions).items()}
    by_key: dict[str, dict[str, list[str]]] = {}
    for repetition in repetitions:
        for subject, key, value in _settings_of(repetition, names):
            subjects = by_key.setdefault(key, {}).setdefault(value, [])
            if subject not in subjects:
                subjects.append(subject)
    return [
        (key, value, "all" if len(values) == 1 and len(subjects) > 1 else ", ".join(subjects))
        for key, values in sorted(by_key.items())
        for value, subjects in values.items()
    ]


def _settings_of(repetition: Repetition, names: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for trained in repetition.trained.values():
        yield from _flat("experts", "train", trained)
    for label, name in names.items():
        trial = repetition.trials.get(label)
        if trial and trial.mix:
            yield from _flat(name, "mix", trial.mix)
        if trial and trial.finetune:
            yield from _flat(name, "finetune", trial.finetune)


def _flat(
    subject: str, command: str, result: TrainExpertResult | MixResult | FinetuneResult
) -> Iterator[tuple[str, str, str]]:
    settings = {"model": result.model or {}, "data": result.data or {}, **result.settings}
    for key, of_result in (("precision", result.precision), ("threads", result.threads)):
        if value := settings.pop(key, None) or of_result:
            settings[f"{command}.{key}"] = value
    if result.glue:
        settings["glue version"] = result.glue
    for key, value in _leaves("", settings):
        yield subject, key, value


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def list_experts(repetitions: Sequence[Repetition]) -> list[tuple[str, str, str, str]]:
    """Return (seed, name, training examples, sha256) of every expert that was blended, each once."""
    experts: dict[tuple[str, str, str, str], None] = {}
    for repetition in repetitions:
        for trial in repetition.trials.values():
            for expert in trial.mix.experts if trial.mix else ():
                seed = "-" if repetition.seed is None else str(repetition.seed)
                examples = "-" if expert.examples is None else f"{expert.examples:,}"
                experts[seed, name_of(expert.path), examples, expert.sha256 or "-"] = None
    return list(experts)
