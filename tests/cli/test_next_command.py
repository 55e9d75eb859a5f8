"""The line that init, check and train-expert tell to try next: it has to work as it stands."""

from pathlib import Path

import pytest

from glue_cli.cli.next_command import mix_command, mix_command_beside


@pytest.mark.parametrize(
    ("experts", "options", "wanted"),
    [
        (["a.safetensors", "b 2.pt"], [], "a.safetensors 'b 2.pt'"),
        (["bert", "hf:owner/name"], ["--batchnorm", "refresh"], "--batchnorm refresh bert hf:owner/name -o prior/"),
        (["bert", "a.safetensors"], [], "bert a.safetensors"),
        ([f"{k}.pt" for k in range(7)], ["--spec", "s.yaml"], "--spec s.yaml EXPERT..."),
    ],
)
def test_folders_are_blended_into_a_folder(tmp_path, monkeypatch, experts, options, wanted):
    monkeypatch.chdir(tmp_path)
    Path("bert").mkdir()
    assert mix_command([Path(each) for each in experts], *options) == f"glue mix --method spsa {wanted}"


def test_all_experts_in_one_place_are_named_by_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my experts/bert").mkdir(parents=True)
    assert mix_command_beside(Path("my experts/bert")) == "glue mix --method spsa 'my experts'/*/ -o prior/"
    assert mix_command_beside(Path("e/expert-000.safetensors")) == "glue mix --method spsa e/*.safetensors"
