"""How many examples BatchNorm's statistics need: the loss of a uniform blend after a refresh on 8 to 4,096 of them.

Statistics are taken as they are (`--batchnorm refresh`), or pulled towards the averaged ones as far as so few examples
leave them uncertain, as a search takes them (`--batchnorm auto`).

    python examples/benchmarks/refresh.py --data cifar10=FOLDER --data gtsrb=FOLDER

The experts are trained once by plain `glue train-expert` commands, from one random start, and kept in `--work`. Each
number of examples is drawn several times at random from the target's training data, in minibatches of 64. The loss is
that on the first 2,000 test examples.
"""

import argparse
import copy
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measure import machine, show, write
from torch import nn

from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.data.target import Target
from glue_cli.foundation.run import Run
from glue_cli.foundation.seeds import generator
from glue_cli.models.weights import load_model
from glue_cli.running.device import Compute
from glue_cli.running.forward import Batch, outputs_of
from glue_cli.running.refreshing import refresh_from_few, refresh_statistics
from glue_cli.spec.schema import Spec
from glue_cli.spec.yaml_file import read_spec
from glue_cli.workflows.evaluation import evaluate_model

PAPER = Path(__file__).resolve().parents[1] / "paper"
SPECS = {"cifar10": PAPER / "cifar10-resnet20" / "glue.yaml", "gtsrb": PAPER / "gtsrb-mobilenetv2" / "glue.yaml"}
N_EXPERTS, N_EPOCHS = 4, 6
NUMBERS = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
N_DRAWS, BATCH, N_JUDGED = 5, 64, 2000
COMPUTE = Compute(torch.device("cpu"), "fp32", channels_last=True)
RESULT = Path(__file__).parent / "results" / "refresh.json"


@dataclass(frozen=True)
class Row:
    """The test loss after a refresh, the mean over draws and their standard deviation.

    Attributes:
        n_examples: 0 for the averaged statistics.
        is_pulled: whether the statistics are pulled towards the averaged ones.
    """

    family: str
    n_examples: int
    loss: float
    sd: float
    is_pulled: bool = False

    @property
    def cells(self) -> list[str]:
        way = "averaged" if not self.n_examples else "pulled" if self.is_pulled else "as they are"
        return [self.family, str(self.n_examples), way, f"{self.loss:.3f}", f"{self.sd:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER", help="cifar10 or gtsrb")
    parser.add_argument("--work", type=Path, default=Path("runs/refresh"), metavar="FOLDER")
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE")
    options = parser.parse_args()
    rows = []
    for name, _, folder in (given.partition("=") for given in options.data):
        rows += measure(name, Path(folder).resolve(), options.work / name)
    columns = ["family", "examples", "statistics", "loss", "sd"]
    show("Loss of the uniform blend by refreshing examples", columns, [row.cells for row in rows])
    write(options.result, {"machine": machine(), "rows": [asdict(row) for row in rows]})


def measure(family: str, data: Path, work: Path) -> list[Row]:
    """Return a family's rows, the averaged statistics first."""
    settings = [f"data.root={data}", f"experts.count={N_EXPERTS}", f"train.epochs={N_EPOCHS}"]
    spec = read_spec(SPECS[family], settings)
    model = COMPUTE.to_device(load_model(spec, read_checkpoint(blend(SPECS[family], settings, work)))).eval()
    target = Target(spec, Run())
    rows = [Row(family, 0, judge(model, target, spec), 0.0)]
    averaged = copy.deepcopy(model.state_dict())
    for n_examples in (n for n in NUMBERS if n <= len(target["train"])):
        for is_pulled, refresh in enumerate((refresh_statistics, refresh_from_few)):
            losses = []
            for draw in range(N_DRAWS):
                model.load_state_dict(averaged)
                refresh(model, drawn(target, n_examples, draw), forward)
                losses.append(judge(model, target, spec))
            spread = torch.tensor(losses)
            rows.append(Row(family, n_examples, spread.mean().item(), spread.std().item(), bool(is_pulled)))
    return rows


def blend(spec: Path, settings: list[str], work: Path) -> Path:
    """Return the experts' uniform blend; what is not there yet is made."""
    experts, blended = [work / f"expert-{k}.safetensors" for k in range(N_EXPERTS)], work / "uniform.safetensors"
    options = ["--spec", str(spec), "--quiet", *(word for setting in settings for word in ("--set", setting))]
    for k, expert in enumerate(experts):
        if not expert.exists():
            glue("train-expert", "--expert", str(k), "-o", str(expert), *options)
    if not blended.exists():
        glue("mix", "--method", "uniform", *map(str, experts), "-o", str(blended), "--quiet")
    return blended


def glue(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "glue_cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def drawn(target: Target, n_examples: int, draw: int) -> list[Batch]:
    """Return `n_examples` of the target's training data, drawn at random, in minibatches."""
    train = target["train"]
    chosen = torch.randperm(len(train), generator=generator(draw, "refresh"))[:n_examples]
    return list(train.subset(chosen).on(COMPUTE).in_random_order(BATCH, draw))


def judge(model: nn.Module, target: Target, spec: Spec) -> float:
    test = target["test"]
    first = test.subset(torch.arange(min(N_JUDGED, len(test)))).on(COMPUTE)
    figures: dict[str, Any] = evaluate_model(model, first, loss=spec.loss, compute=COMPUTE)
    return float(figures["loss"])


@torch.no_grad()
def forward(model: nn.Module, batch: Batch) -> None:
    outputs_of(model, batch[0])


if __name__ == "__main__":
    main()
