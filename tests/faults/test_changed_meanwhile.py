"""A file that is cut, replaced, overwritten or becomes a FIFO while glue reads it: the old content counts, or none."""

import os
import random

import pytest
from faulty import PAUSE, READS, evenly
from small_runs import RUNS, found, leftovers

REPLACED = {"mix": "e1.safetensors", "mix, shards": "e1.safetensors", "mix, spsa": "e1.safetensors"}
REPLACED |= {"mix, adapters": "adapter-1/adapter_model.safetensors", "mix, merged": "base/model.safetensors"}
REPLACED |= {"mix, disk": "e1.safetensors", "mix, streamed": "e1.safetensors"}
REPLACED |= {
    "check": "e1.safetensors",
    "init": "e1.safetensors",
    "finetune": "e0.safetensors",
    "evaluate": "e0.safetensors",
    "show": "e0.safetensors",
}
DATA = {name: "data/train.safetensors" for name in ("mix, spsa", "train-expert", "finetune")}
CASES = [*REPLACED.items(), *DATA.items(), ("report", "history.jsonl"), ("evaluate", "glue.yaml")]

MOST = 360  # changes that --long makes in a case, spread evenly over its reads, of which searches have many
CHANGES = {
    "is cut": "os.truncate(path, path.stat().st_size // 2)",
    "is emptied": "os.truncate(path, 0)",
    "is removed": "path.unlink()",
    "is replaced": "other = path.with_suffix('.new'); other.write_bytes(changed); os.replace(other, path)",
    "is overwritten": "path.write_bytes(changed)",
    "is overwritten with its time kept": (
        "before = path.stat(); path.write_bytes(changed); os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))"
    ),
    "becomes a FIFO": "path.unlink(); os.mkfifo(path)",
    "becomes a folder": "path.unlink(); path.mkdir()",
}


def setup(file):
    """Return code that names a file, its content, and content whose last bytes alone are others, so that it is valid.

    Had glue read a part of either, its output would be neither of the two.
    """
    return f"path = folder / {file!r}; content = path.read_bytes(); changed = content[:-4] + content[-4:][::-1]"


def lasting(contents, run):
    """Return the files whose bytes do not change from run to run."""
    return {path: content for path, content in contents.items() if path not in run.changing}


@pytest.mark.parametrize(("name", "file"), CASES)
def test_a_change_at_each_read(faulty, name, file, how_many, record_property):
    """The change comes just before glue opens, reads or maps any of its files."""
    run, wanted, n_calls = RUNS[name], [], 0
    # The outputs for the old content, the new, and what is left of the old: a history that was cut is a history too.
    for begin in ("", *(f"{setup(file)}; {CHANGES[change]}" for change in ("is overwritten", "is cut", "is emptied"))):
        folder = faulty.folder()
        exec(begin, {"folder": folder, "os": os})
        whole = faulty.run(run.arguments, folder, kinds=READS)
        wanted.append(lasting(found(folder, run), run) if whole.code == 0 else None)
        n_calls = n_calls or whole.calls
        faulty.remove(folder)
    points = [(change, number) for change in CHANGES for number in range(n_calls)]
    chosen = evenly(points, MOST)
    tried = random.Random(name + file).sample(chosen, min(len(chosen), how_many(3, MOST)))
    for change, number in tried:
        folder = faulty.folder()
        then = f"{setup(file)}; {CHANGES[change]}"
        changed = faulty.run(run.arguments, folder, mode=PAUSE, number=number, kinds=READS, then=then)
        told = (change, number, changed)
        assert changed.code in (0, 2, 3, 5) and "Traceback" not in changed.err, told
        there = lasting(found(folder, run), run)
        assert there in wanted if changed.code == 0 else not there, told
        assert not any(".glue-" in path for path in leftovers(folder)), told
        faulty.remove(folder)
    record_property("points", len(tried))
