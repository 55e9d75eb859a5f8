"""Two runs with one output, such as tasks of an array job: what the first has written, the second leaves alone."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glue_cli.plans.outputs import Outputs
from glue_cli.report import write_report as report_work

RUNS = {
    "mix": ["mix", "--alpha", "1,0,0", "EXPERTS"],
    "search": ["mix", "--method", "spsa", "EXPERTS"],
    "train-expert": ["train-expert", "--expert", "1"],
    "finetune": ["finetune", "experts/expert-000.safetensors"],
    "evaluate": ["evaluate", "experts/expert-000.safetensors"],
}


@pytest.fixture
def meanwhile(monkeypatch):
    """Have another run write a file right after the outputs of this one were checked."""

    def write(path):
        real = Outputs.check

        def check(self, *args, **settings):
            real(self, *args, **settings)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"of the other run")

        monkeypatch.setattr(Outputs, "check", check)

    return write


@pytest.mark.parametrize("command", RUNS)
def test_the_second_finds_its_output_taken(here, glue, experts, meanwhile, command):
    arguments = [word for part in RUNS[command] for word in (experts if part == "EXPERTS" else [part])]
    meanwhile(here / "out.safetensors")
    answer = glue(*arguments, "-o", "out.safetensors", "-q")
    answer.refused(2, "another run has written the output 'out.safetensors'", "--force")
    assert (here / "out.safetensors").read_bytes() == b"of the other run"
    assert not list(here.glob(".glue-*"))
    assert glue(*arguments, "-o", "out.safetensors", "-q", "--force").code == 0
    assert (here / "out.safetensors").read_bytes() != b"of the other run"


@pytest.mark.parametrize("command", ["search", "train-expert", "finetune"])
def test_the_second_finds_its_history_taken(here, glue, experts, meanwhile, command):
    arguments = [word for part in RUNS[command] for word in (experts if part == "EXPERTS" else [part])]
    meanwhile(here / "h.jsonl")
    answer = glue(*arguments, "-o", "out.safetensors", "--history", "h.jsonl", "-q")
    answer.refused(2, "another run has written the history 'h.jsonl'", "--force")
    assert (here / "h.jsonl").read_bytes() == b"of the other run" and not (here / "out.safetensors").exists()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        Path(f"m{number}").mkdir()
        tensors = {name: torch.full((1000,), float(number)) for name in "abc"}
        save_file(tensors, f"m{number}/model.safetensors", {"format": "pt"})
        Path(f"m{number}/config.json").write_text('{"model_type": "mine"}')
    return ["m0", "m1"]


@pytest.mark.parametrize("shards", [[], ["--max-shard-size", "5kB"]])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "model-00001-of-00009.safetensors"])
def test_no_folder_is_made_of_the_files_of_two_runs(folders, glue, meanwhile, shards, file):
    """Shards of one run beside the whole weights of another: `from_pretrained` would take either."""
    meanwhile(Path("out", file).absolute())
    glue("mix", "--alpha", "1,0", *folders, "-o", "out", *shards, "-q").refused(
        2, "another run has written the output 'out'"
    )
    assert os.listdir("out") == [file] and Path("out", file).read_bytes() == b"of the other run"
    glue("mix", "--alpha", "1,0", *folders, "-o", "out", *shards, "-q", "--force", code=0)
    loaded = [load_file(path) for path in Path("out").glob("model*.safetensors")]
    assert {name for tensors in loaded for name in tensors} == set("abc")


def test_the_second_of_two_reports_leaves_the_first_alone(tmp_path, glue, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    history = '[{"epoch": 0, "test_accuracy": 0.1}, {"epoch": 1, "test_accuracy": 0.4}]'
    Path("f.json").write_text(f'{{"schema": "glue.finetune/1", "start": "scratch", "history": {history}}}')
    real = report_work._write

    def late(folder, contents, **settings):
        folder.mkdir()
        (folder / "report.html").write_bytes(b"of the other run")
        real(folder, contents, **settings)

    monkeypatch.setattr(report_work, "_write", late)
    glue("report", "f.json", "-q").refused(2, "another run has written the output")
    assert Path("report/report.html").read_bytes() == b"of the other run"
