"""The search benchmark: its statistics against independent ones, its peers, and that a run which was cut goes on."""

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch

from glue_cli.checkpoints.tensors import write_checkpoint
from glue_cli.models import build_model
from glue_cli.running.device import Compute
from glue_cli.search.account import Cost
from glue_cli.spec.yaml_file import read_spec

EXAMPLES = Path(__file__).parents[2] / "examples"

# A random search with nevergrad's interface, and as talkative.
NEVERGRAD = """
import random, types
from types import SimpleNamespace as Names

class Array:
    def __init__(self, shape):
        self.shape, self.function = shape, Names()
        self.random_state = random.Random()

class NGOpt:
    def __init__(self, parametrization, budget, num_workers=1):
        print("hello")
        self.parametrization, self.budget, self.told = parametrization, budget, []

    def ask(self):
        draw = self.parametrization.random_state.gauss
        return Names(value=Values(draw(0, 1) for _ in range(*self.parametrization.shape)))

    def tell(self, candidate, loss):
        self.told.append((loss, candidate))

    def provide_recommendation(self):
        assert len(self.told) == self.budget
        return min(self.told, key=lambda one: one[0])[1]

class Values(list):
    tolist = list.copy

p, optimizers = Names(Array=Array), Names(NGOpt=NGOpt)
"""


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")


class Bowl:
    """An objective with its least loss at a known alpha, which charges for what is asked."""

    n_groups = 1

    def __init__(self, n_experts):
        self.n_experts = n_experts
        self.best = torch.arange(1.0, n_experts + 1, dtype=torch.float64).softmax(0)
        self.cost = Cost()

    def probe_losses(self, alphas, step):
        self.cost.forwards += len(alphas)
        return (alphas[:, 0] - self.best).square().sum(1) * (1 + 0.1 * (step % 3))

    pair_losses = probe_losses

    def gradient(self, alpha, step):
        self.cost.forwards += 1
        self.cost.backwards += 1
        return 0.0, 2 * (alpha - self.best)


class BowlProblem:
    def __init__(self, n_experts):
        self.n_experts = n_experts

    def objective(self, seed):
        return Bowl(self.n_experts)


def draw(mean, n_examples=60, n_seeds=3):
    return mean + 0.5 * torch.randn(n_seeds, n_examples, dtype=torch.float64)


@pytest.fixture
def problems():
    """Losses for two families, where the default search is good on one; the draws are always the same."""
    torch.manual_seed(0)
    import search_statistics

    def losses(own, budgets):
        found = {"default": {budget: draw(own) for budget in (*budgets, 200, 500)}}
        methods = [name for of in search_statistics.GRADIENT_FREE.values() for name in of]
        for i, name in enumerate(dict.fromkeys([*methods, "fullgrad-0.03", "fullgrad-0.1", "fullgrad-0.3"])):
            found[name] = {budget: draw(1 + 0.05 * i) for budget in budgets}
        return found

    return {("easy", 4): losses(0.7, (100, 300, 1000)), ("hard", 3): losses(2.5, (100, 300))}


def test_wins_ties_and_losses_are_those_of_the_paired_differences(problems):
    from search_statistics import GRADIENT_FREE, summarise

    summary = summarise(problems, {"hard"})
    expected = {}
    for (family, n_experts), losses in problems.items():
        for alternative, settings in GRADIENT_FREE.items():
            for budget in losses["uniform"]:
                best = min(settings, key=lambda s: statistics.fmean(losses[s][budget].flatten().tolist()))  # noqa: B023
                own, other = (losses[name][budget].T.tolist() for name in ("default", best))
                pairs = zip(own, other, strict=True)
                differences = [statistics.fmean(a) - statistics.fmean(b) for a, b in pairs]
                t = statistics.fmean(differences) / (statistics.stdev(differences) / len(differences) ** 0.5)
                expected[family, n_experts, budget, alternative] = "win" if t < -2 else "loss" if t > 2 else "tie"
    found = {
        (row["family"], row["n_experts"], row["budget"], row["alternative"]): row["outcome"]
        for row in summary["comparisons"]
        if row["alternative"] in GRADIENT_FREE
    }
    assert found == expected
    assert {"win", "loss"} <= set(expected.values())
    totals = {(row["alternative"], row["families"]): row for row in summary["totals"]}
    for families, of in (("all", {"easy", "hard"}), ("tuned on", {"easy"}), ("left out", {"hard"})):
        outcomes = [outcome for (family, *_), outcome in expected.items() if family in of]
        total = totals["all gradient-free", families]
        assert [total[name] for name in ("win", "tie", "loss")] == [*map(outcomes.count, ("win", "tie", "loss"))]
        assert total["won_or_tied"] == 1 - outcomes.count("loss") / len(outcomes)


@pytest.mark.parametrize(("shift", "outcome"), [(-0.05, "win"), (0.0, "tie"), (0.05, "loss")])
def test_pairing_finds_a_difference_far_below_the_spread_of_the_losses(shift, outcome):
    from search_statistics import compare

    torch.manual_seed(1)
    other = 10 * torch.rand(3, 500, dtype=torch.float64)
    noise = 0.1 * torch.randn(3, 500, dtype=torch.float64)
    found = compare(other + noise - noise.mean() + shift, other)
    assert found.outcome == outcome
    assert found.difference == pytest.approx(shift)


def test_the_same_losses_are_a_tie():
    from search_statistics import compare

    losses = torch.rand(3, 20, dtype=torch.float64)
    assert compare(losses, losses).outcome == "tie"


def test_the_best_of_several_settings_is_chosen_cell_by_cell_once_all_are_there():
    from search_statistics import best_of

    losses = {"a": {100: torch.full((1, 2), 3.0), 300: torch.full((1, 2), 1.0)}, "b": {100: torch.full((1, 2), 2.0)}}
    assert best_of(losses, ["a", "b"], 100) == "b"
    assert best_of(losses, ["a", "b"], 300) is None


def constant(mean):
    return torch.full((3, 4), mean, dtype=torch.float64)


def test_the_closed_gap_is_from_uniform_to_the_best_of_all_methods_and_budgets():
    from search_statistics import summarise

    losses = {
        "default": {300: constant(1.5), 500: constant(1.4)},
        "uniform": {300: constant(3.0), 1000: constant(3.0)},
        "fullgrad-0.1": {300: constant(1.6), 1000: constant(1.0)},
    }
    (row,) = summarise({("family", 5): losses}, set())["closed_gap"]
    assert (row["best_by"], row["closed"]) == ("fullgrad-0.1 at 1000", 0.75)
    del losses["fullgrad-0.1"]
    losses["default"] = {300: constant(3.5)}
    (row,) = summarise({("family", 5): losses}, set())["closed_gap"]
    assert row["closed"] is None  # nothing is better than uniform


def test_few_forwards_are_compared_with_the_papers_thousand():
    from search_statistics import PAPER, summarise

    losses = {name: {1000: constant(2.0 + i)} for i, name in enumerate(reversed(PAPER))}
    losses["default"] = {200: constant(4.9), 500: constant(2.1)}
    rows = summarise({("family", 5): losses}, set())["reach"]
    assert [(row["budget"], row["setting"], row["reached"]) for row in rows] == [
        (200, "paper-0.01", True),
        (500, "paper-0.3", False),
    ]


def test_runs_that_end_worse_than_a_baseline_are_counted_seed_by_seed():
    from search_statistics import summarise

    noise = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    own = torch.cat([constant(1.0)[:1], constant(3.0)[:1], 2.1 + noise])
    rows = summarise({("family", 5): {"default": {100: own}, "uniform": {100: constant(2.0)}}}, set())["guard"]
    uniform = next(row for row in rows if row["baseline"] == "uniform")
    assert (uniform["runs"], uniform["worse"], uniform["clearly_worse"]) == (3, 2, 1)
    assert (uniform["mean_excess"], uniform["largest_excess"]) == (pytest.approx(0.55), 1.0)
    assert next(row for row in rows if row["baseline"] == "proxy")["runs"] == 0


@pytest.mark.parametrize("name", ["paper-0.1", "fullgrad-0.1", "cmaes-0.5"])
def test_a_run_to_the_largest_budget_passes_through_the_smaller_ones(name, tmp_path):
    if name.startswith("cmaes"):
        pytest.importorskip("cmaes")
    from peers import peers

    search, problem = peers(tmp_path)[name], BowlProblem(5)
    found = search(problem, [100, 300], 7)
    assert found[100].alpha.tolist() == search(problem, [100], 7)[100].alpha.tolist()
    assert 90 < found[100].forwards <= 100 < 290 < found[300].forwards <= 300
    bowl = Bowl(5)
    start, middle, end = (
        bowl.probe_losses(alpha[None, None], 0).item()
        for alpha in (torch.full_like(bowl.best, 0.2), found[100].alpha, found[300].alpha)
    )
    assert start > middle > end


def test_the_papers_search_is_that_of_glue_at_its_learning_rate(tmp_path):
    from peers import peers

    from glue_cli.foundation.seeds import generator
    from glue_cli.methods.steps.directions import draw_directions

    bowl = Bowl(4)
    beta = torch.zeros(1, 4, dtype=torch.float64)
    optimizer = torch.optim.Adam([beta], lr=0.01, betas=(0.9, 0.99))
    for step in range(5):
        u = draw_directions(1, (1, 4), "gaussian", zero_sum=False, generator=generator(3, "directions", step))[0]
        above, below = (bowl.probe_losses((beta + r * u).softmax(1)[None], step) for r in (0.01, -0.01))
        beta.grad = 4 * (above - below) / 0.02 * u
        optimizer.step()
    found = peers(tmp_path)["paper-0.01"](BowlProblem(4), [10], 3)[10]
    torch.testing.assert_close(found.alpha, beta.softmax(1)[0])
    assert found.forwards == bowl.cost.forwards == 10


def test_ngopt_is_asked_over_pipes_and_spends_its_budget(tmp_path, monkeypatch):
    import ngopt
    from peers import peers

    (tmp_path / "nevergrad.py").write_text(NEVERGRAD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(ngopt, "install", lambda work: Path(sys.executable))
    search = peers(tmp_path)["ngopt"]
    found = search(BowlProblem(3), [8, 20], 1)
    assert [one.forwards for one in found.values()] == [8, 20]
    again = search(BowlProblem(3), [20], 1)[20]
    assert again.alpha.tolist() == found[20].alpha.tolist() != search(BowlProblem(3), [20], 2)[20].alpha.tolist()
    bowl = Bowl(3)
    losses = [bowl.probe_losses(one.alpha[None, None], 0).item() for one in found.values()]
    assert losses[1] < losses[0]


def test_an_ngopt_that_dies_stops_the_run(tmp_path, monkeypatch):
    import ngopt

    (tmp_path / "nevergrad.py").write_text("raise ImportError('no nevergrad')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit, match="ended early"):
        ngopt.minimise(Path(sys.executable), lambda points, step: [0.0] * 3, n_numbers=2, budget=3, seed=0)


def test_a_default_search_that_overspends_is_refused(monkeypatch):
    import search

    def greedy(objective, budget, seed):
        objective.probe_losses(torch.full((budget + 1, 1, 3), 1 / 3, dtype=torch.float64), 0)

    monkeypatch.setattr(search, "default_spsa", greedy)
    with pytest.raises(SystemExit, match="101 forwards of 100"):
        search.default_search(BowlProblem(3), [100], 0)


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A family of three untrained experts; returns its spec and their state dicts."""
    import families
    import search

    family = families.Family("digits", "digits", (2, 3), families.LONG)
    monkeypatch.setattr(search, "FAMILIES", (family,))
    states = [build_model("cnn", {"num_classes": 10, "in_channels": 1}, seed=k).state_dict() for k in range(3)]
    folder = tmp_path / "experts" / "digits"
    folder.mkdir(parents=True)
    for k, state in enumerate(states):
        write_checkpoint(folder / f"expert-{k:03d}.safetensors", state, {})
    return family, states


def test_held_out_losses_are_those_of_the_blend(digits, tmp_path):
    from families import prepare
    from problem import Problem

    from glue_cli.data.target import Target
    from glue_cli.foundation.run import Run

    family, states = digits
    spec, experts = prepare(family, {}, tmp_path)
    alpha = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    model = build_model("cnn", {"num_classes": 10, "in_channels": 1}, seed=9).eval()
    floats = [name for name, tensor in states[0].items() if tensor.is_floating_point()]
    blend = {name: sum(a * s[name].double() for a, s in zip(alpha, states, strict=True)) for name in floats}
    model.load_state_dict(blend, strict=False)
    val = Target(read_spec(EXAMPLES / "digits" / "glue.yaml"), Run())["val"]
    with torch.no_grad():
        inputs, targets = next(val.on(Compute(torch.device("cpu"))).in_order(200))
        expected = torch.nn.functional.cross_entropy(model(inputs), targets, reduction="none")
    problem = Problem(spec, experts, "val")
    torch.testing.assert_close(problem.held_out_losses(alpha), expected, atol=1e-4, rtol=1e-4)
    assert len(Problem(spec, experts, "test").held_out_losses(alpha)) == 400


def test_a_run_goes_on_from_what_is_there(digits, tmp_path, capsys):
    import search

    given = ["--work", str(tmp_path), "--result", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    given += ["--held-out", "val", "--budgets", "100"]
    search.main([*given, "--methods", "uniform", "default", "--seeds", "0"])
    first = json.loads((tmp_path / "r.json").read_text())
    alphas = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("alphas/*/*.json")}
    search.main([*given, "--methods", "uniform", "default", "best-expert", "--seeds", "0", "1"])
    made = [line for line in capsys.readouterr().err.splitlines() if line.startswith("digits")]
    assert len(made) == len(set(made)) == 4 + 2 * (1 + 1 + 2)
    assert all(path.stat().st_mtime_ns == before for path, before in alphas.items())
    second = json.loads((tmp_path / "r.json").read_text())
    cells = [(row["n_experts"], row["method"]) for row in second["figures"]]
    assert cells == [(k, method) for k in (2, 3) for method in ("best-expert", "default", "uniform")]
    assert first["seeds"] == [0] and second["seeds"] == [0, 1] and second["held_out"] == "val"
    found = [json.loads(path.read_text())["alpha"] for path in (tmp_path / "digits-2").rglob("alphas/*/*.json")]
    judged = list((tmp_path / "digits-2" / "losses" / "val").iterdir())
    assert len(judged) == len(set(map(tuple, found))) < len(found) == 6  # the same alpha is judged once
    assert not list(tmp_path.rglob("*.part"))
    assert "**digits, K = 3: loss on 200 held-out examples**" in (tmp_path / "r.md").read_text()


def test_results_without_all_seeds_are_not_shown(tmp_path):
    from peers import Found
    from search_results import Results

    results, alpha = Results(tmp_path, "test"), torch.tensor([0.25, 0.75], dtype=torch.float64)
    results.keep("default", 100, 0, Found(alpha, 99))
    results.judge(alpha, lambda alpha: torch.arange(5.0))
    assert results.losses([0])["default"][100].tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0]]
    assert results.losses([0, 1]) == {} == Results(tmp_path, "val").losses([0])
    results.judge(alpha, lambda alpha: pytest.fail("judged before"))


def test_families_without_their_data_are_left_out(digits, tmp_path, capsys, monkeypatch):
    import search
    from families import FAMILIES

    monkeypatch.setattr(search, "FAMILIES", [family for family in FAMILIES if family.data])
    with pytest.raises(SystemExit, match="no results"):
        search.main(["--work", str(tmp_path)])
    assert "cifar10 is left out: no --data cifar10=FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        search.main(["--data", f"cifar={tmp_path}"])
    assert "a name of cifar10, imagenette, amazon" in capsys.readouterr().err


def test_the_experts_are_trained_by_a_plain_command(tmp_path, monkeypatch):
    import families

    calls = []
    monkeypatch.setattr(families, "run", lambda command, log: calls.append(command))
    family = next(family for family in families.FAMILIES if family.name == "cifar10")
    (tmp_path / "experts" / "cifar10").mkdir(parents=True)
    (tmp_path / "experts" / "cifar10" / "expert-003.safetensors").write_bytes(b"trained before")
    spec, experts = families.prepare(family, {"cifar10": tmp_path}, tmp_path)
    assert [command[command.index("--expert") + 1] for command in calls] == [str(k) for k in range(10) if k != 3]
    assert calls[0][1:4] == ["-m", "glue_cli", "train-expert"]
    assert spec.experts.count == len(experts) == 10 and spec.data.root == str(tmp_path)
