"""Experts that are given twice."""

from glue_cli.checkpoints.header import Checkpoint
from glue_cli.workflows.hashes import repeated_files, repeated_weights


def test_an_expert_given_twice_is_told_once(tmp_path):
    names = ("a", "link to a", "copy of a", "b", "ema of b")
    for name in ("a", "copy of a", "b"):
        (tmp_path / name).touch()
    (tmp_path / "link to a").symlink_to(tmp_path / "a")
    (tmp_path / "ema of b").symlink_to(tmp_path / "b")
    experts = [Checkpoint(path := tmp_path / n, (path,), {}, {}, (), "ema" if "ema" in n else None) for n in names]
    [of_files] = repeated_files(experts)
    assert of_files.startswith("experts 0 and 1 are the same weights: ")
    [of_copies] = repeated_weights(experts, ["0", "0", "0", "1", "1"])
    assert of_copies.startswith("experts 0 and 2 are the same weights: ")
    assert repeated_weights(experts, [None] * 5) == []
