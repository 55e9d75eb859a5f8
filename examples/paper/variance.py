"""Measure the SPSA estimator on trained experts: its variance by n and K, its bias and noise by the radius mu.

    python examples/paper/variance.py EXPERT... --data-root FOLDER

EXPERT... are ten experts of the row cifar10-resnet20 with seed 0: the five of run.sh, whose shares do not depend on
how many there are, and five more by `glue train-expert --expert 5 --set experts.count=10` to `--expert 9`. It takes
about nine minutes on one core and writes results/variance.json and the figures.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gather  # noqa: F401, by which the benchmarks' own module is found
import torch
from measure import machine, write
from torch import Tensor
from variance_figures import draw

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.checkpoints.read import read_checkpoint
from glue_cli.data.target import Target
from glue_cli.foundation.run import Run
from glue_cli.foundation.seeds import generator
from glue_cli.methods.domains import Simplex
from glue_cli.methods.fullgrad import fullgrad
from glue_cli.methods.steps.directions import draw_directions
from glue_cli.methods.steps.questions import Probes, probe
from glue_cli.methods.steps.spsa_steps import estimate_from, probe_betas
from glue_cli.models import build_model
from glue_cli.running.device import Compute
from glue_cli.running.timing import Precision
from glue_cli.search.bank.load import load_bank
from glue_cli.search.blended import ResidentBlends
from glue_cli.search.criterion import criterion_of
from glue_cli.search.objective import BlendObjective, Minibatches
from glue_cli.spec.schema import MixSpec, Spec
from glue_cli.spec.yaml_file import read_spec

HERE = Path(__file__).resolve().parent

N_EXPERTS = (2, 5, 10)
N_DIRECTIONS = (1, 2, 4, 8)
N_DRAWS = 256  # directions for a variance
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
MU = 0.01  # the row's
MUS = [10 ** (k / 2) for k in range(-8, 3)]  # five decades
N_EXPERTS_BY_MU = 5
N_DRAWS_BY_MU = 64
# Towards the optimum, by the full gradient.
SEARCH = MixSpec.model_validate({"preset": "default", "steps": 150, "validate_every": 50})
# The fixed minibatch is the one of this step.
STEP = 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("experts", nargs=max(N_EXPERTS), type=Path)
    parser.add_argument("--data-root", required=True, type=Path)
    arguments = parser.parse_args()
    spec = read_spec(HERE / "cifar10-resnet20" / "glue.yaml", [f"data.root={arguments.data_root.resolve()}"])
    experts = [read_checkpoint(path) for path in arguments.experts]
    result = HERE / "results" / "variance.json"
    write(result, {"machine": machine(), "mu": MU, "batch_size": spec.mix.batch_size, **measure(spec, experts)})
    draw(result, HERE / "figures")


def measure(spec: Spec, experts: Sequence[Checkpoint]) -> dict[str, Any]:
    """Measure the estimator at the uniform blend and near the optimum; lengths are relative to the gradient's."""
    target = Target(spec, Run())
    variances: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for n_experts in N_EXPERTS:
        objectives = {p: make_objective(spec, target, experts[:n_experts], p) for p in PRECISIONS}
        for place, beta in find_places(objectives["fp32"]).items():
            gradient = gradient_at(objectives["fp32"], beta)
            at = {"n_experts": n_experts, "place": place, "gradient_norm": gradient.norm().item()}
            print(*at.values(), flush=True)
            for zero_sum in (False, True):
                for found in measure_variance(objectives["fp32"], beta, gradient, zero_sum=zero_sum):
                    variances.append({**at, "zero_sum": zero_sum, **found})
            if n_experts == N_EXPERTS_BY_MU:
                for precision in PRECISIONS:
                    for mu in MUS:
                        found = measure_error(objectives[precision], beta, gradient, mu)
                        errors.append({**at, "precision": precision, "mu": mu, **found})
    return {"variance": variances, "error": errors}


def make_objective(spec: Spec, target: Target, experts: Sequence[Checkpoint], precision: Precision) -> BlendObjective:
    """Return the objective that `glue mix` searches."""
    compute = Compute(torch.device("cpu"), precision, channels_last=True)
    train, val = target["train"].on(compute), target["val"].on(compute)
    model = compute.to_device(build_model(spec.model.arch, spec.model.args, seed=0))
    bank = load_bank(experts, device=compute.device, channels_last=True)
    return BlendObjective(
        ResidentBlends(model, bank, compute, seed=spec.seed),
        criterion_of("loss", spec.loss, Path(".")),
        Minibatches(
            at_step=lambda step: train.at_step(step, spec.mix.batch_size, spec.seed),
            validation=val.in_order,
            n_validation=val.n_in_order,
        ),
        seed=spec.seed,
    )


def find_places(objective: BlendObjective) -> dict[str, Tensor]:
    """Return the logits [1, K] where the estimator is measured."""
    uniform = torch.zeros(1, objective.n_experts, dtype=torch.float64)
    return {"uniform": uniform, "near the optimum": fullgrad(objective, SEARCH, seed=0).alpha.log()}


def gradient_at(objective: BlendObjective, beta: Tensor) -> Tensor:
    """Return grad_beta L on the fixed minibatch, [K], by the chain rule through the softmax."""
    domain = Simplex(1, objective.n_experts)
    alpha = domain.from_logits(beta)
    _, products = objective.gradient(alpha, STEP)
    return domain.gradient_by_logits(alpha, products)[0]


def estimate(
    objective: BlendObjective, beta: Tensor, n_draws: int, *, mu: float, zero_sum: bool
) -> tuple[Tensor, Tensor]:
    """Return estimates of the gradient by one direction each, and those directions, both [n_draws, K]."""
    draws = generator(0, "variance")
    domain = Simplex(1, objective.n_experts)
    directions = draw_directions(n_draws, domain.shape, "gaussian", zero_sum=zero_sum, generator=draws)
    estimates = []
    for pair in directions[:, None]:
        probes = Probes(domain.from_logits(probe_betas(beta, pair, mu=mu)), n_at_once=2)
        losses = probe(objective, probes, STEP)
        n_dimensions = domain.n_logit_dimensions(zero_sum=zero_sum)
        estimates.append(estimate_from(losses, pair, mu=mu, n_dimensions=n_dimensions).gradient)
    return torch.cat(estimates), directions[:, 0]


def measure_variance(
    objective: BlendObjective, beta: Tensor, gradient: Tensor, *, zero_sum: bool
) -> Iterator[dict[str, Any]]:
    """Yield trace Cov of the estimate over |grad|^2 for each n, beside what it is as mu -> 0, eq. (13)."""
    singles, _ = estimate(objective, beta, N_DRAWS, mu=MU, zero_sum=zero_sum)
    scale = gradient.square().sum().item()
    for n in N_DIRECTIONS:
        trace, error = trace_covariance(singles.view(N_DRAWS // n, n, -1).mean(1))  # eq. (6)
        expected = (objective.n_experts - (2 if zero_sum else 1)) / n
        yield {"n": n, "trace": trace / scale, "standard_error": error / scale, "expected": expected}


def measure_error(objective: BlendObjective, beta: Tensor, gradient: Tensor, mu: float) -> dict[str, float]:
    """Return the bias, and the noise beyond that of the directions, of an estimate by one direction, over |grad|.

    Both are taken from the differences to what the same directions give as mu -> 0, eq. (12).
    """
    estimates, directions = estimate(objective, beta, N_DRAWS_BY_MU, mu=mu, zero_sum=False)
    limits = objective.n_experts * (directions @ gradient)[:, None] * directions  # eq. (12), n = 1
    differences = (estimates - limits) / gradient.norm()
    trace, _ = trace_covariance(differences)
    of_mean = trace / N_DRAWS_BY_MU  # what noise adds to the squared length of the mean
    squared_bias = max(0.0, differences.mean(0).square().sum().item() - of_mean)
    return {"bias": squared_bias**0.5, "bias_standard_error": of_mean**0.5, "noise": trace**0.5}


def trace_covariance(samples: Tensor) -> tuple[float, float]:
    """Return the trace of the covariance of samples [R, K], and its standard error."""
    squares = (samples - samples.mean(0)).square().sum(1) * len(samples) / (len(samples) - 1)
    return squares.mean().item(), (squares.std() / len(samples) ** 0.5).item()


if __name__ == "__main__":
    main()
