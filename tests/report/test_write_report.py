"""The whole report: its files, what they say, and that they can be made again."""

import json
import re
import subprocess
import sys

import pytest

from glue_cli.foundation.errors import UsageError
from glue_cli.foundation.progress import silent
from glue_cli.report import figures, plots
from glue_cli.report.sort import sort_sources
from glue_cli.report.sources import read_sources
from glue_cli.report.styles import BLACK
from glue_cli.report.summary import summarise
from glue_cli.report.write_report import plan_report, report

RUNS = {
    0: {
        "data-size": [0.10, 0.40, 0.50],
        "fullgrad": [0.30, 0.45, 0.55],
        "spsa": [0.30, 0.44, 0.52],
        "scratch": [0.1, 0.5, 0.6],
    },
    1: {"data-size": [0.12, 0.42, 0.48], "fullgrad": [0.31, 0.44, 0.56], "spsa": [0.29, 0.46, 0.56]},
}


@pytest.fixture
def make_report(tmp_path):
    def make(files, folder="report", **options):
        plan = plan_report(files, tmp_path / folder, **{"force": False, "title": None, **options})
        return report(plan, silent), tmp_path / folder

    return make


@pytest.fixture
def no_figures(monkeypatch):
    """Leave the figures out, as where matplotlib is not installed: they take seconds."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_what_is_written(write_runs, make_report):
    result, folder = make_report(write_runs(RUNS))
    assert sorted(path.name for path in folder.iterdir()) == sorted(result["files"])
    for kind in ("accuracy", "alpha", "loss", "cost"):
        name = f"cifar10-resnet20-{kind}"
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (folder / f"{name}.svg").read_text()
        assert f"{name}.png" in (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 4
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)) <= {(i, "") for i in ids} | {("", i) for i in ids}


def test_the_tables_say_what_the_runs_found(write_runs, make_report, no_figures):
    _, folder = make_report(write_runs(RUNS))
    rows = [line.split(" | ") for line in (folder / "report.md").read_text().splitlines() if line.startswith("| ")]
    cells = {row[0].removeprefix("| "): [cell.strip(" |") for cell in row[1:]] for row in rows}
    wanted = ["2", "+18.5 ± 2.1", "+5.0 ± 4.2", "+4.5 ± 2.1", "+4.5 ± 2.1", "+4.0 to +5.0"]
    assert cells["GLUE (SPSA) minus data size"] == wanted
    assert cells["GLUE (SPSA) minus full gradient"][2] == "−1.5 ± 2.1"  # it loses, and is shown like the others
    assert cells["best"] == ["40.0", "40.0"]
    scratch = [row for row in rows if row[0] == "| from scratch"][0]
    assert scratch[1:4] == ["0", "10.0", "60.0"]  # one seed, no deviation
    text = (folder / "report.md").read_text()
    assert "`" + "1" * 64 + "`" in text  # an expert's sha256
    assert "from scratch (1)" in text


def test_a_report_made_from_a_report_is_the_same(write_runs, make_report, tmp_path, no_figures):
    files = write_runs(RUNS)
    first, folder = make_report(files)
    kept = folder.rename(tmp_path / "kept")
    _, again = make_report([kept / "report.json"])
    for name in first["files"]:
        assert (kept / name).read_bytes() == (again / name).read_bytes(), name
    halves = [[f for f in files if f"seed-{seed}" in str(f)] for seed in (0, 1)]
    parts = [make_report(half, f"part-{i}")[1] / "report.json" for i, half in enumerate(halves)]
    _, joined = make_report(parts, "joined")
    assert json.loads((joined / "report.json").read_text())["rows"] == first["rows"]


def test_the_same_figure_is_the_same_bytes(write, make, make_report):
    files = [write("row/seed-0/f.json", make.finetune("spsa", [0.1, 0.2]))]
    (_, first), (_, second) = make_report(files, "first"), make_report(files, "second")
    for name in ("row-accuracy.svg", "row-accuracy.png", "report.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_rows_of_different_experiments_stand_side_by_side(write, make, make_report):
    files = [write(f"{row}/seed-0/f.json", make.finetune("spsa", [0.1, 0.2])) for row in ("one", "other one")]
    result, folder = make_report(files, title="Both <of them>")
    assert [row["row"] for row in result["rows"]] == ["one", "other one"]
    assert (folder / "other-one-accuracy.svg").exists()
    assert "<h1>Both &lt;of them&gt;</h1>" in (folder / "report.html").read_text()


def test_rows_whose_names_make_the_same_file_name_keep_their_figures(write, make, make_report):
    rows = {"a b": [0.1, 0.2], "a-b": [0.3, 0.4]}
    files = [write(f"{row}/seed-0/f.json", make.finetune("spsa", accuracies)) for row, accuracies in rows.items()]
    result, folder = make_report(files)
    assert sorted(path.name for path in folder.iterdir()) == sorted(result["files"])
    shown = re.findall(r"\]\((.+-accuracy)\.png\)", (folder / "report.md").read_text())
    assert len(shown) == len(set(shown)) == 2


def test_settings_that_differ_name_the_methods_that_they_hold_for(write, make, make_report, no_figures):
    def told(n):
        mix = {"lr": 0.01, "n_directions": n}
        return {"settings": {"mix": mix, "precision": "fp32"}, "data": {"format": "cifar10"}}

    files = [write("row/a.json", make.mix("spsa", "spsa", **told(1)))]
    files.append(write("row/b.json", make.mix("spsa-n2", "spsa", **told(2))))
    _, folder = make_report(files)
    text = (folder / "report.md").read_text()
    for line in (
        "| `mix.n_directions` | `1` | GLUE (SPSA) |",
        "| `mix.n_directions` | `2` | GLUE, 2 directions |",
        "| `mix.lr` | `0.01` | all |",
        "| `mix.precision` | `fp32` | all |",
        "| `data.format` | `cifar10` | all |",
    ):
        assert line in text


def test_many_methods_are_drawn_in_two_figures(write_runs, make_report):
    labels = ["uniform", "uniform-refreshed", "data-size", "proxy", "fullgrad", "spsa", "spsa-n2", "scratch"]
    result, folder = make_report(write_runs({0: {label: [0.1, 0.2, 0.3] for label in labels}}))
    drawn = {row["label"] for row in result["rows"][0]["methods"]}
    assert drawn == set(labels)
    page = (folder / "report.html").read_text()
    shown = re.findall(r'aria-label="Test accuracy over the finetuning epochs, one line per start: ([^"]+)\."', page)
    assert shown == [
        "data size, proxy accuracy, full gradient, GLUE (SPSA), from scratch",
        "uniform, uniform, BatchNorm refreshed, full gradient, GLUE (SPSA), GLUE, 2 directions",
    ]


def test_many_experts_are_told_apart_but_for_the_lightest(write, make, notes):
    n = 40
    lines = make.search("spsa")
    for line in lines:
        line["alpha"] = [(k + 1) / (n * (n + 1) / 2) for k in range(n)]
    runs = sort_sources(read_sources([write("row/spsa.jsonl", lines)], notes))["row"]
    figure, _, _ = plots.alpha(summarise("row", runs), runs)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*(f"expert {k}" for k in range(26, 40)), "the others"]
    styles = [(line.get_color(), line.get_linestyle()) for line in legend.get_lines()]
    assert len(set(styles)) == 15


@pytest.fixture
def drawn(write, notes):
    """Write results, each beside its history, and draw a figure of them; return it with its caption."""

    def draw(plot, found):
        files = [
            write(f"row/seed-0/{name}.{'jsonl' if isinstance(content, list) else 'json'}", content)
            for name, content in found
        ]
        runs = sort_sources(read_sources(files, notes))["row"]
        row = summarise("row", runs)
        figure, _, caption = plots.alpha(row, runs) if plot is plots.alpha else plot(row)
        return figure, caption

    return draw


def test_the_dotted_line_is_where_the_kept_alpha_is(drawn, make):
    plain, staged = make.search("fullgrad", 4), make.staged("spsa", 7)
    plain[2]["val_loss"] = 0.1
    figure, caption = drawn(plots.alpha, [("fullgrad", plain), ("spsa", staged), ("cmaes", make.staged("cmaes")[:-1])])
    dotted = {
        axes.get_title().removesuffix(", seed 0"): [
            line.get_xdata()[0] for line in axes.lines if line.get_color() == BLACK and line.get_linewidth() == 0.8
        ]
        for axes in figure.axes
    }
    assert dotted == {"full gradient": [2], "GLUE (SPSA)": [7], "CMA-ES": []}  # the last has not ended
    assert "The dotted line marks the alpha that is kept." in caption


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_a_search_with_few_validations_is_no_method_without_a_search(drawn, make):
    found = [("spsa", make.mix("spsa", "spsa", steps=3)), ("spsa", make.staged("spsa"))]
    figure, caption = drawn(plots.loss, [*found, ("fullgrad", make.search("fullgrad", 40))])
    (axes,) = figure.axes
    assert len(axes.lines) == 2 and "level" not in caption
    lines = lines_of(axes)
    assert lines["GLUE (SPSA)"].get_markersize() > lines["full gradient"].get_markersize()
    without = [("uniform", make.mix("uniform", "uniform")), ("f", make.finetune("uniform", [0.1, 0.2]))]
    figure, caption = drawn(plots.loss, [*found, *without])
    (level,) = [line for line in figure.axes[0].lines if line.get_linewidth() == 0.7]
    assert list(level.get_xdata()) == [10, 45] and list(level.get_ydata()) == [2.0, 2.0]
    assert "Thin level lines are methods without a search." in caption


def test_searches_for_different_objectives_have_axes_of_their_own(drawn, make):
    found = [("fullgrad", make.search("fullgrad"))]
    for label, name in (("spsa", "accuracy"), ("cmaes", "python:scores:gain")):
        score = {"name": name, "val": 0.9, "val_uniform": 0.8}
        found += [(label, make.mix(label, label, steps=3, objective=score)), (label, make.staged(label))]
    figure, caption = drawn(plots.loss, found)
    assert {axes.get_ylabel(): list(lines_of(axes)) for axes in figure.axes} == {
        "validation loss": ["full gradient"],
        "1 - accuracy on validation data": ["GLUE (SPSA)"],
        "minus scores:gain on validation data": ["CMA-ES"],
    }
    assert caption.startswith("Validation loss and 1 - accuracy on validation data and minus scores:gain on")


def test_without_matplotlib_the_tables_are_written_and_the_way_to_install_it_is_told(
    write_runs, tmp_path, notes, no_figures
):
    result = report(plan_report(write_runs(RUNS), tmp_path / "r", force=False, title=None), notes)
    assert result["files"] == ["report.html", "report.md", "report.json"]
    assert any("pip install 'glue-cli[plot]'" in text for text in notes.texts)
    assert "glue-cli[plot]" in (tmp_path / "r/report.html").read_text()
    assert "GLUE (SPSA) minus data size" in (tmp_path / "r/report.md").read_text()


def test_drawing_leaves_no_trace_in_matplotlib(write, make, tmp_path):
    write("row/f.json", make.finetune("spsa", [0.1, 0.2]))
    program = """
import sys
from pathlib import Path
import matplotlib
matplotlib.rcParams["font.size"] = 31
from glue_cli.foundation.progress import silent
from glue_cli.report.write_report import plan_report, report
report(plan_report([Path("row/f.json")], Path("r"), force=False, title=None), silent)
assert matplotlib.rcParams["font.size"] == 31
assert "matplotlib.pyplot" not in sys.modules and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_a_dollar_in_a_name_is_no_formula(write, make, make_report):
    _, folder = make_report([write("row/f.json", make.finetune("a$\\frac", [0.1, 0.2]))])
    assert (folder / "row-accuracy.png").exists()


def test_outputs_are_there_whole_or_not_at_all(write_runs, tmp_path, make_report, monkeypatch):
    files = write_runs(RUNS)
    monkeypatch.setattr(figures, "draw", lambda row, runs, name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_report(files)
    assert not (tmp_path / "report").exists()


def test_a_figure_in_the_way_is_found_before_anything_is_written(write, make, tmp_path, make_report):
    files = [write("row/f.json", make.finetune("spsa", [0.1, 0.2]))]
    taken = write("report/row-accuracy.png", "mine")
    with pytest.raises(UsageError, match="row-accuracy.png' exists"):
        make_report(files)
    assert list(taken.parent.iterdir()) == [taken] and taken.read_text() == "mine"
    make_report(files, force=True)
    assert taken.read_bytes() != b"mine"
    with pytest.raises(UsageError, match="also an input"):
        make_report([*files, taken], force=True)
