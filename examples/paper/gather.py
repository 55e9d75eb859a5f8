"""Keep what a report is made of as one file, with where it ran: python gather.py REPORT.json RESULT.json

`glue report RESULT.json...` makes the report again, of any number of rows and seeds. Its key `sources` holds, by the
name of the file that it was in, every result that a command printed, and the histories of the searches.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measure import machine  # noqa: E402

# Of a search these steps are kept, beside those with a validation loss.
EVERY = 20


def gather(report: Path, result: Path) -> None:
    """Write a report's sources to `result`, one a line, whole or not at all."""
    found = json.loads(report.read_text())
    sources = [{**source, "objects": thin(source["objects"])} for source in found["sources"]]
    head = {"schema": found["schema"], "machine": {**machine(), "threads": torch.get_num_threads()}}
    lines = ",\n".join(map(json.dumps, sources))
    result.parent.mkdir(parents=True, exist_ok=True)
    part = result.with_suffix(".part")
    part.write_text(f'{json.dumps(head)[:-1]}, "sources": [\n{lines}\n]}}\n')
    os.replace(part, result)


def thin(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out most steps of a search's history; a result is one object."""
    return [o for o in objects if o is objects[-1] or o.get("val_loss") is not None or o.get("step", 0) % EVERY == 0]


if __name__ == "__main__":
    gather(Path(sys.argv[1]), Path(sys.argv[2]))
