"""Two runs with one output: the first that is done keeps it, whatever the command, and the second says so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glue_cli.cli.app import main
from glue_cli.foundation import output_files


@pytest.fixture
def experts(tmp_path, monkeypatch):
    """Two experts of two layers, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        tensors = {name: torch.full((2, 3), float(number)) for name in ("a", "b")}
        save_file(tensors, f"expert-{number}.safetensors", {"format": "pt"})
    return ["expert-0.safetensors", "expert-1.safetensors"]


@pytest.fixture
def overtaken(monkeypatch):
    """Let another run write the first output, just before this one would."""
    give_name, written = output_files._give_name, []

    def late(temporary, output, **how):
        if not written:
            written.append(output)
            output.write_bytes(b"of the other run")
        give_name(temporary, output, **how)

    monkeypatch.setattr(output_files, "_give_name", late)
    return written


@pytest.mark.parametrize("flags", [[], ["--max-shard-size", "30B"]], ids=["one file", "shards"])
def test_the_second_blend_finds_its_output_taken(experts, overtaken, capsys, flags):
    before = set(Path().iterdir())
    assert main(["mix", "--alpha", "0.5,0.5", *experts, *flags]) == 2
    assert "another run has written the output" in capsys.readouterr().err
    assert overtaken[0].read_bytes() == b"of the other run"
    assert set(Path().iterdir()) - before == {Path(overtaken[0].name)}


def test_force_replaces_it(experts, overtaken):
    assert main(["mix", "--alpha", "0.5,0.5", *experts, "--force"]) == 0
    assert overtaken[0].read_bytes() != b"of the other run"
