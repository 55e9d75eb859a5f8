"""Run command lines of one revision, each in a process of its own that has torch imported already.

A request is a line of JSON on stdin, the arguments of `glue`; the answer is a line of JSON on stdout. `PYTHONPATH`
names the revision's checkout, the current folder is where it works. Of the revision, this knows no more than
`python -m glue_cli`.
"""

import json
import os
import runpy
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

# What takes long to import, of other people's: the first optimiser imports torch._dynamo. The revision's own modules
# are imported by each command anew.
_SLOW = ("torch", "torch._dynamo", "typer", "pydantic", "rich.console", "yaml", "safetensors.torch", "cmaes")
LIMIT_S = 120  # of one command; the signal that ends it shows in its exit code


def run(arguments: list[str]) -> dict[str, object]:
    """Run `python -m glue_cli ARGUMENTS`; return its exit code and what it printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _become_glue(arguments, out.fileno(), err.fileno())
        _, status = os.waitpid(child, 0)
        answer: dict[str, object] = {"code": os.waitstatus_to_exitcode(status)}
        for name, file in (("out", out), ("err", err)):
            file.seek(0)
            answer[name] = file.read().decode(errors="backslashreplace")
        return answer


def _become_glue(arguments: list[str], out: int, err: int) -> None:
    """Do in this process what `python -m glue_cli` does, and end it."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        signal.alarm(LIMIT_S)
        sys.argv = ["glue", *arguments]
        sys.path[0] = os.getcwd()
        runpy.run_module("glue_cli", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    found = find_spec("glue_cli")
    wanted = Path(os.environ["PYTHONPATH"]) / "glue_cli" / "__init__.py"
    if not found or not found.origin or not wanted.is_file() or not os.path.samefile(found.origin, wanted):
        sys.exit(f"no glue_cli in {wanted.parent}")
    for name in _SLOW:
        with suppress(ImportError):  # of an extra that is not installed
            import_module(name)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
