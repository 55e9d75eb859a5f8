"""nevergrad's NGOpt, in an environment of its own and asked over pipes.

Run as a script, this file is the other end: it writes the points to try as JSON lines, and reads their losses.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

VERSION = "1.0.12"
REQUIREMENTS = (f"nevergrad=={VERSION}", "numpy<2.4")  # which still takes an array of one element for a number

# Points on one minibatch, whose losses compare. On the digits (K = 4, 8, 16, 100 and 300 forwards, validation) this
# is on average better than a minibatch a point, with or without a flag for noisy losses; 8 points are about as good.
TOGETHER = 4


def install(work: Path) -> Path:
    """Return the Python of an environment with nevergrad, which is made in `work` unless it is there."""
    environment = (work / "nevergrad-env").resolve()
    python = environment / "bin" / "python"
    if not (environment / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        (environment / "installed").touch()
    return python


def minimise(
    python: Path,
    losses_of: Callable[[Sequence[Sequence[float]], int], Sequence[float]],
    *,
    n_numbers: int,
    budget: int,
    seed: int,
) -> list[float]:
    """Return the point [n_numbers] that NGOpt recommends after `budget` losses.

    Args:
        losses_of: the losses of points that are tried together; it is also given the number of such calls before.
    """
    command = [str(python), __file__, str(n_numbers), str(budget), str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        for step in range(math.ceil(budget / TOGETHER)):
            losses = losses_of(_read(process.stdout), step)
            print(json.dumps(list(losses)), file=process.stdin, flush=True)
        (recommended,) = _read(process.stdout)
        return recommended


def _read(answers: IO[str]) -> list[list[float]]:
    line = answers.readline()
    if not line:
        sys.exit("NGOpt has ended early")
    points: list[list[float]] = json.loads(line)
    return points


def serve(n_numbers: int, budget: int, seed: int) -> None:
    """Write the points to try together, and last the recommended one, a line a time; read their losses."""
    import nevergrad  # of the other environment

    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the library prints is no answer
    numbers = nevergrad.p.Array(shape=(n_numbers,))
    optimizer = nevergrad.optimizers.NGOpt(parametrization=numbers, budget=budget, num_workers=TOGETHER)
    optimizer.parametrization.random_state.seed(seed)
    for asked in range(0, budget, TOGETHER):
        candidates = [optimizer.ask() for _ in range(min(TOGETHER, budget - asked))]
        print(json.dumps([candidate.value.tolist() for candidate in candidates]), file=answers, flush=True)
        for candidate, loss in zip(candidates, json.loads(sys.stdin.readline()), strict=True):
            optimizer.tell(candidate, loss)
    print(json.dumps([optimizer.provide_recommendation().value.tolist()]), file=answers, flush=True)


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
