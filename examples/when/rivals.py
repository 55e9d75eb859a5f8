"""The models that compete in a cell: blends by every method, single experts, and trainings without any expert."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from commands import Glue, Result

DEFAULT = "spsa"
# How each blend is made, beside `glue mix EXPERT...`.
MIXES: dict[str, tuple[str, ...]] = {
    DEFAULT: ("--method", "spsa"),
    "uniform": ("--method", "uniform"),
    "proxy": ("--method", "proxy"),
    "greedy": ("--method", "greedy"),
    "fullgrad": ("--method", "fullgrad"),
    "cmaes": ("--method", "cmaes"),
    "paper": ("--method", "spsa", "--set", "mix.preset=paper"),
    "one-alpha": ("--method", "spsa", "--batchnorm", "average", "--set", "mix.groups=none"),
}
FINETUNED = (DEFAULT, "uniform", "best-expert", "proxy", "greedy", "mashup", "fullgrad")
SCRATCH, START = "scratch", "start"
RANDOM_EXPERTS = "random-experts"
# The control with all labels for finetuning: `glue finetune` trains in the end on the validation examples as well if
# they are fewer than 50 and all labels at most 500. With up to 245 labels, every cell's finetuning does so anyway.
N_FEW_VAL, MOST_FOR_ALL_LABELS = 49, 1000


def refreshed(name: str) -> str:
    return f"{name}-refreshed"


@dataclass(frozen=True)
class Priors:
    """The models that are there before any training on the target.

    Attributes:
        files: where each lies, by its name.
        results: what `glue mix` said of the blends.
        label_losses: of some of them, the mean loss over all labels.
    """

    files: dict[str, Path]
    results: dict[str, Result]
    label_losses: dict[str, float]

    def start_of(self, name: str) -> Path:
        """Return what finetuning starts from: of two kinds of statistics those that do better on the labels."""
        kinds = [kind for kind in (name, refreshed(name)) if kind in self.files]
        return self.files[min(kinds, key=lambda kind: self.label_losses[kind]) if len(kinds) > 1 else name]


def make_priors(glue: Glue, experts: Sequence[Path], *, has_batchnorm: bool) -> Priors:
    """Make the blends by all methods, and choose the best expert and those of Mashup Learning by the labels."""
    results = {name: _mix(glue, name, experts, *how) for name, how in MIXES.items()}
    files = {name: glue.file(name) for name in MIXES}
    kinds = {f"expert-{k}": path for k, path in enumerate(experts)}
    if has_batchnorm:
        results[refreshed("uniform")] = _mix(
            glue, refreshed("uniform"), experts, *MIXES["uniform"], "--batchnorm", "refresh"
        )
        for k, path in enumerate(experts):
            name = refreshed(f"expert-{k}")
            _mix(glue, name, [path], "--alpha", "1", "--batchnorm", "refresh")
            kinds[name] = glue.file(name)
        kinds |= {"uniform": files["uniform"], refreshed("uniform"): glue.file(refreshed("uniform"))}
        files[refreshed("uniform")] = kinds[refreshed("uniform")]
    losses = losses_on_labels(glue, kinds)
    plain = [losses[f"expert-{k}"] for k in range(len(experts))]
    _choose_best(files, losses, "best-expert", {f"expert-{k}": path for k, path in enumerate(experts)})
    if has_batchnorm:
        again = {name: kinds[name] for k in range(len(experts)) for name in [refreshed(f"expert-{k}")]}
        _choose_best(files, losses, refreshed("best-expert"), again)
    results["mashup"] = _mix(glue, "mashup", experts, "--alpha", mashup(plain))
    files["mashup"] = glue.file("mashup")
    return Priors(files, results, losses)


def mashup(losses: Sequence[float]) -> str:
    """Return the alpha of Mashup Learning (arXiv 2603.10156): the experts of least target loss, averaged.

    We take the better half of the experts, rounded up.
    """
    n_chosen = (len(losses) + 1) // 2
    chosen = sorted(range(len(losses)), key=losses.__getitem__)[:n_chosen]
    return ",".join(repr(1 / n_chosen) if k in chosen else "0" for k in range(len(losses)))


def losses_on_labels(glue: Glue, files: Mapping[str, Path]) -> dict[str, float]:
    """Return each model's mean loss over all labels, those for training and those for validation."""
    splits = [glue(f"on-{split}", "evaluate", *files.values(), "--split", split) for split in ("train", "val")]
    sums = dict.fromkeys(files, 0.0)
    for result in splits:
        for name, row in zip(files, result["results"], strict=True):
            sums[name] += row["loss"] * row["examples"]
    n_labels = sum(result["results"][0]["examples"] for result in splits)
    return {name: total / n_labels for name, total in sums.items()}


def _mix(glue: Glue, name: str, experts: Sequence[Path], *how: str) -> Result:
    return glue(name, "mix", *experts, *how, "-o", glue.file(name))


def _choose_best(files: dict[str, Path], losses: dict[str, float], name: str, among: Mapping[str, Path]) -> None:
    best = min(among, key=losses.__getitem__)
    files[name], losses[name] = among[best], losses[best]


def finetune_all(glue: Glue, priors: Priors, *, has_start: bool, n_labels: int) -> dict[str, Result]:
    """Finetune the priors, and train without experts: from scratch, and from the start of the experts.

    Args:
        has_start: whether the experts come from a pretrained start, which is then a rival of its own.
    """
    starts = (*FINETUNED, *([RANDOM_EXPERTS] if RANDOM_EXPERTS in priors.files else []))
    results = {name: _finetune(glue, name, priors.start_of(name)) for name in starts}
    results[SCRATCH] = _finetune(glue, SCRATCH, "--from-scratch", "--set", "experts.init=shared")
    if has_start:
        results[START] = _finetune(glue, START, "--from-scratch")
    if 5 * N_FEW_VAL < n_labels <= MOST_FOR_ALL_LABELS:
        name = f"{START if has_start else SCRATCH}-all-labels"
        target = f"data.target={{train: {n_labels - N_FEW_VAL}, val: {N_FEW_VAL}}}"
        results[name] = _finetune(glue, name, "--from-scratch", "--set", target)
    return results


def _finetune(glue: Glue, name: str, *start: str | Path) -> Result:
    name = f"{name}-finetuned"
    return glue(name, "finetune", *start, "--track", "test", "-o", glue.file(name))
