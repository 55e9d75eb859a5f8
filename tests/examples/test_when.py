"""The map of when mixing pays: its cells on a small net, that it goes on where it was cut, and its page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
WHEN = EXAMPLES / "when"
SPEC = """
model: {{arch: cnn, args: {{in_channels: 1, width: 4, num_classes: 10}}}}
data: {{format: safetensors, root: '{digits}', target: {{train: 300, val: 60}}}}
experts: {{count: 3, size: 60}}
train: {{epochs: 1}}
mix: {{steps: 4}}
finetune: {{epochs: 1, batch_size: 64, lr: 0.001}}
precision: fp32
"""
ELSEWHERE = """
model: {{arch: cnn, args: {{in_channels: 1, width: 4, num_classes: 10}}}}
data: {{format: safetensors, root: '{digits}', target: {{train: 60, val: 20}}}}
finetune: {{preset: paper, epochs: 1}}
precision: fp32
"""


@pytest.fixture(autouse=True)
def when(monkeypatch):
    monkeypatch.syspath_prepend(WHEN)


@pytest.fixture
def family(tmp_path):
    """Return a family of three experts that are trained in a second."""
    pytest.importorskip("cmaes")
    from cells import PRETRAINED, RANDOM, Family

    for name, text in (("small", SPEC), ("small-start", ELSEWHERE)):
        (tmp_path / f"{name}.yaml").write_text(text.format(digits=EXAMPLES / "digits"))
    spec, elsewhere = tmp_path / "small.yaml", tmp_path / "small-start.yaml"
    return Family("small", spec, (0, 1, 2), (RANDOM, PRETRAINED), (100,), elsewhere=elsewhere)


def test_a_cell_has_all_rivals_and_is_made_once(family, tmp_path, monkeypatch):
    import work
    from cells import PRETRAINED, Cell

    cell = Cell(family, PRETRAINED, 100, 0)
    results = tmp_path / "results"
    assert work.work_through([cell], tmp_path / "work", results) == []
    rows = {row["method"]: row for row in work.read_rows(results / "small.jsonl")}
    blends = {"spsa", "uniform", "proxy", "greedy", "fullgrad", "cmaes", "paper", "one-alpha", "mashup"}
    both = {"uniform-refreshed", "best-expert", "best-expert-refreshed", "ensemble", "ensemble-refreshed"}
    assert rows.keys() == {*blends, *both, "random-experts", "scratch", "start"}
    finetuned = {name for name, row in rows.items() if "finetuned" in row}
    others = {"best-expert", "random-experts", "scratch", "start"}
    assert finetuned == blends - {"cmaes", "paper", "one-alpha"} | others
    assert rows["spsa"]["zero_shot"]["loss_beyond"] == 0 == rows["spsa"]["finetuned"]["accuracy_beyond"]
    uniform = rows["uniform"]["zero_shot"]
    assert uniform["loss"] - rows["spsa"]["zero_shot"]["loss"] == pytest.approx(uniform["loss_beyond"], abs=1e-5)
    assert uniform["loss_standard_error"] > 0
    assert {len(rows[name]["finetuned"]["test_accuracy"]) for name in finetuned} == {2}
    assert not list((tmp_path / "work" / "cells").rglob("*.safetensors"))

    shutil.rmtree(tmp_path / "work")
    monkeypatch.setattr(work, "make_cell", None)  # would fail if it were asked again
    assert work.work_through([cell], tmp_path / "work", results) == []
    assert len(work.read_rows(results / "small.jsonl")) == len(rows)


def test_a_family_may_be_compared_as_it_is_alone(family, tmp_path):
    import work
    from cells import RANDOM, Cell
    from verdicts import finetuned_verdicts, harm_verdicts, read_found, zero_shot_verdicts

    cell = Cell(replace(family, name="reviews-books", is_finetuned=False), RANDOM, 25, 0)
    assert work.work_through([cell], tmp_path / "work", tmp_path / "results") == []
    rows = work.read_rows(tmp_path / "results" / "reviews-books.jsonl")
    assert {"spsa", "uniform", "ensemble"} <= {row["method"] for row in rows}
    assert not any("finetuned" in row for row in rows)
    found = read_found(tmp_path / "results")
    assert zero_shot_verdicts(found)["uniform"].total() == 1
    assert finetuned_verdicts(found) == {} and harm_verdicts(found).total() == 0


def test_a_cell_that_was_cut_goes_on_and_comes_out_the_same(family, tmp_path, monkeypatch):
    import commands
    import work
    from cells import RANDOM, Cell

    cell = Cell(family, RANDOM, 25, 1)
    whole = work.make_cell(cell, tmp_path / "whole")
    run, lines = commands._run, []

    def cut(line):
        lines.append(line)
        if len(lines) == 12:
            raise KeyboardInterrupt
        return run(line)

    monkeypatch.setattr(commands, "_run", cut)
    with pytest.raises(KeyboardInterrupt):
        work.work_through([cell], tmp_path / "cut", tmp_path / "results")
    assert not (tmp_path / "results").exists()
    n_before = len(lines)
    assert work.work_through([cell], tmp_path / "cut", tmp_path / "results") == []
    outputs = [line[line.index("-o") + 1] for line in lines[: n_before - 1] + lines[n_before:] if "-o" in line]
    assert len(outputs) == len(set(outputs))  # nothing was made twice
    assert work.rounded(whole) == work.read_rows(tmp_path / "results" / "small.jsonl")


def test_a_command_that_fails_is_told_and_the_next_cell_is_made(family, tmp_path, monkeypatch, capsys):
    import work
    from cells import RANDOM, Cell

    broken = replace(family, name="broken", spec=tmp_path / "broken.yaml")
    broken.spec.write_text(SPEC.format(digits=tmp_path / "nowhere"))
    cells = [Cell(broken, RANDOM, 25, 0), Cell(family, RANDOM, 25, 0)]
    monkeypatch.setattr(work, "make_cell", lambda cell, folder: work.make_experts(cell, folder) and [cell.key])
    assert work.work_through(cells, tmp_path / "work", tmp_path / "results") == [str(cells[0])]
    said = capsys.readouterr().err
    assert "broken-random-25-seed-0 failed: glue train-expert" in said and "nowhere' does not exist" in said
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["small.jsonl"]


def test_mashup_takes_the_better_half():
    from rivals import mashup

    assert mashup([3.0, 1.0, 2.0]) == "0,0.5,0.5"
    assert mashup([1.0, 1.0]) == "1.0,0"


def test_the_order_of_work_is_a_whole_map_of_one_seed_first():
    from cells import FAMILIES, cells_of

    cells = list(cells_of())
    assert len(set(map(str, cells))) == len(cells) == 4 * 9 + 24 + 26 + 4 * 3
    first = cells[: 4 * 3 + 8 + 8 + 4 * 3]
    assert {cell.seed for cell in first} == {0} and {cell.family for cell in first} == set(FAMILIES)
    assert all(cell.n_val < cell.labels for cell in cells)


def test_an_ensemble_is_the_mean_of_probabilities(family, tmp_path):
    import work
    from cells import RANDOM, Cell
    from judged import ensemble_figures

    from glue_cli.checkpoints.read import read_checkpoint
    from glue_cli.data.target import Target
    from glue_cli.foundation.run import Run
    from glue_cli.models.weights import load_model
    from glue_cli.spec.yaml_file import read_spec

    experts = work.make_experts(Cell(family, RANDOM, 25, 0), tmp_path / "work")
    spec = read_spec(family.spec)
    dataset = Target(spec, Run())["test"].dataset
    images = dataset.inputs.float() / 127.5 - 1  # as glue normalises images by default
    with torch.no_grad():
        outputs = [load_model(spec, read_checkpoint(path)).eval()(images).softmax(1) for path in experts]
    mean = sum(outputs) / 3
    expected = -mean[torch.arange(len(images)), dataset.labels].log().mean().item()
    found = ensemble_figures(spec, experts)
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["accuracy"] == pytest.approx((mean.argmax(1) == dataset.labels).float().mean().item(), abs=0.002)


def test_random_experts_lie_as_far_from_the_start(family, tmp_path):
    import work
    from cells import RANDOM, Cell
    from judged import write_random_experts
    from safetensors.torch import load_file

    from glue_cli.models.weights import initial_model
    from glue_cli.spec.yaml_file import read_spec

    experts = work.make_experts(Cell(family, RANDOM, 25, 0), tmp_path / "work")
    spec = read_spec(family.spec)
    start = initial_model(spec).state_dict()
    for expert, random in zip(experts, write_random_experts(spec, experts, tmp_path / "random"), strict=True):
        one, other = load_file(expert), load_file(random)
        for name in one:
            if "running" in name or "num_batches" in name:
                assert torch.equal(one[name], other[name])
                continue
            step, random_step = one[name] - start[name], other[name] - start[name]
            assert random_step.norm().item() == pytest.approx(step.norm().item(), rel=1e-3)
            if step.numel() > 100:
                cosine = torch.cosine_similarity(step.flatten(), random_step.flatten(), dim=0)
                assert abs(cosine.item()) < 0.5


def row(method, zero_shot=None, finetuned=None, **more):
    """Return a line of the results; figures are the accuracy, and what it is beyond the default's, with an error."""
    stages = {}
    for stage, figures in (("zero_shot", zero_shot), ("finetuned", finetuned)):
        if figures:
            accuracy, beyond, error, *curve = figures
            stages[stage] = {"accuracy": accuracy, "accuracy_beyond": beyond, "accuracy_standard_error": error}
            stages[stage] |= {"loss": 1 - accuracy, "loss_beyond": -beyond, "loss_standard_error": error}
            stages[stage] |= {"test_accuracy": curve, "steps": 100}
    return {"method": method, **stages, **more}


@pytest.fixture
def results(tmp_path):
    """Write a cell of traffic signs and two of reviews, as a run that was cut leaves them."""
    prior = {"prior_beyond_finetuned": {"accuracy_beyond": -0.1, "accuracy_standard_error": 0.01}}
    signs = [
        row("spsa", (0.5, 0, 0), (0.6, 0, 0, 0.5, 0.55, 0.6), **prior),
        row("uniform", (0.4, -0.1, 0.01), (0.61, 0.01, 0.02, 0.4, 0.5, 0.61)),
        row("best-expert", (0.6, 0.1, 0.01), (0.7, 0.1, 0.01, 0.6, 0.7, 0.7)),
        row("scratch", None, (0.3, -0.3, 0.01, 0.1, 0.2, 0.3)),
        row("start", None, (0.55, -0.05, 0.01, 0.1, 0.5, 0.55)),
        row("ensemble"),
    ]
    signs[-1]["zero_shot"] = {"accuracy": 0.65, "loss": 1.0}
    folder = tmp_path / "results"
    folder.mkdir()
    cells = {
        "gtsrb": [{"start": "pretrained", "labels": 100, "seed": 0, "rows": signs}],
        "reviews-dvd": [{"start": "random", "labels": 25, "seed": seed, "rows": signs[:1]} for seed in (0, 1)],
    }
    for family, found in cells.items():
        lines = [{"family": family, **cell, **line} for cell in found for line in cell.pop("rows")]
        (folder / f"{family}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_verdicts_are_by_two_paired_standard_errors(results):
    from verdicts import finetuned_verdicts, harm_verdicts, read_found, zero_shot_verdicts

    cells = read_found(results)
    assert [cell.place for cell in cells] == [("reviews", "random", 25)] * 2 + [("gtsrb", "pretrained", 100)]
    assert zero_shot_verdicts(cells) == {"uniform": {"won": 1}, "best-expert": {"lost": 1}}
    after = {"uniform": {"level": 1}, "best-expert": {"lost": 1}, "scratch": {"won": 1}, "start": {"won": 1}}
    assert finetuned_verdicts(cells) == after
    assert harm_verdicts(cells) == {"won": 3}


def test_a_loss_on_single_seeds_may_be_none_over_all_of_them():
    from verdicts import Behind, Found, behind, behind_over_seeds

    def cell(seed, family="gtsrb", **beyond):
        zero_shot = {name: {"loss_beyond": x, "loss_standard_error": 0.01} for name, x in beyond.items()}
        rows = {name.replace("_", "-"): {"zero_shot": figures} for name, figures in zero_shot.items()}
        return Found("gtsrb", family, "random", 25, seed, {"spsa": {"zero_shot": {}}, **rows})

    cells = [
        cell(0, uniform=-0.05, proxy=-0.2),
        cell(1, uniform=0.03, proxy=-0.21),
        cell(2, uniform=-0.01, proxy=-0.22),
    ]
    assert behind(cells) == Behind(6, 4, 0.22)
    over_seeds = behind_over_seeds([*cells, cell(0, family="another", uniform=-9.0)])
    assert (over_seeds.n, over_seeds.n_behind) == (2, 1) and over_seeds.most == pytest.approx(0.21)
    assert behind([cell(0, random_experts=-1.0)]) == Behind(0, 0, 0.0)


def test_steps_are_a_share_of_those_of_training_without_experts(results):
    from verdicts import median_saving, read_found

    signs = read_found(results)[-1:]
    assert median_saving(signs, "spsa") == 0.5  # at .55 after 50 steps of 100, where the start is after 100
    assert median_saving(signs, "best-expert") == 0
    signs[0].rows["start"]["finetuned"]["test_accuracy"][-1] = 0.9
    assert median_saving(signs, "spsa") == float("inf")


def test_the_page_says_what_is_there_and_what_is_missing(results, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import page

    monkeypatch.setattr(page, "HERE", tmp_path)
    page.main()
    text = (tmp_path / "results.md").read_text()
    assert "3 of 98 cells" in text and "| gtsrb | 1 of 24 | test |" in text and "| cifar10 | 0 of 26 |" in text
    assert "| gtsrb | pretrained | 100 | 1 | 40.0 | 60.0 | 50.0 | 65.0 | 30.0 | 55.0 | 70.0 | 61.0 |  | 60.0 |" in text
    assert "| reviews | random | 25 | 2 |  |  | 50.0 ± 0.0 |  |" in text
    assert "| best-expert | 0 / 0 / 1 | 0 / 0 / 1 | 0 / 0 / 1 | 0 / 0 / 1 |" in text
    assert "| its own prior |  | 3 / 0 / 0 |  | 1 / 0 / 0 |" in text
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"when.svg", "when.png"}


def test_the_page_of_an_empty_map_is_whole(tmp_path, monkeypatch):
    import page

    monkeypatch.setattr(page, "HERE", tmp_path)
    page.main()
    assert "0 of 98 cells" in (tmp_path / "results.md").read_text()
