"""A process with glue imported and the library of fail_calls.c preloaded; each run of glue is a fork of it.

It reads requests from stdin, a JSON object a line, and answers each with one. Importing torch once saves two seconds a
run. Run as a script by `faulty.py`.
"""

import ctypes
import importlib
import json
import os
import pkgutil
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import glue_cli
from glue_cli.cli.app import main

LIMIT_S = 60  # a run that takes longer hangs


def import_all() -> None:
    """Import what runs import, and the parts of torch that it imports late."""
    for module in pkgutil.walk_packages(glue_cli.__path__, "glue_cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    with suppress(ImportError):
        import matplotlib.backends.backend_svg
        import matplotlib.pyplot  # noqa: F401
    import torch

    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()


def run(arguments: list[str], folder: str, armed: dict, report: int, pipes: tuple[int, int]) -> None:
    """Run glue in this process, which is a fork, and end it."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    for name, number in (("stdout", 1), ("stderr", 2)):
        descriptor = os.open(f"{folder}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(descriptor, number)
        os.close(descriptor)
    library = ctypes.CDLL(None)
    library.faults_disarm.restype = ctypes.c_long
    number = ctypes.c_long(armed["number"])
    library.faults_arm(folder.encode(), armed["kinds"], armed["mode"], number, armed["error"], *pipes)
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(report, json.dumps({"code": code, "calls": library.faults_disarm()}).encode())
    os._exit(0)


def answer(request: dict) -> dict:
    """Fork for one run; do what is asked for when its chosen call pauses; wait for its end."""
    reading, report = os.pipe()
    asking, ask = os.pipe()
    answering, reply = os.pipe()
    child = os.fork()
    if child == 0:
        for descriptor in (reading, asking, reply):
            os.close(descriptor)
        run(request["arguments"], request["folder"], request["armed"], report, (ask, answering))
    for descriptor in (report, ask, answering):
        os.close(descriptor)
    limit_s = request["kill_after_s"] or LIMIT_S
    deadline, told, paused = time.monotonic() + limit_s, b"", False
    try:
        open_ends = {reading, asking}
        while reading in open_ends:
            ready, _, _ = select.select(open_ends, [], [], max(0, deadline - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                return {"code": "killed" if request["kill_after_s"] else "hangs", "calls": 0, "paused": paused}
            if asking in ready:
                if os.read(asking, 1):
                    paused = True
                    if request["then"] == "kill":
                        os.kill(child, signal.SIGKILL)
                    else:
                        exec(request["then"], {"folder": Path(request["folder"]), "os": os})
                        os.write(reply, b"x")
                else:
                    open_ends.discard(asking)
            if reading in ready:
                piece = os.read(reading, 1000)
                told += piece
                if not piece:
                    open_ends.discard(reading)
    finally:
        _, status = os.waitpid(child, 0)
        for descriptor in (reading, asking, reply):
            os.close(descriptor)
    if told:
        return {**json.loads(told), "paused": paused}
    return {"code": -os.WTERMSIG(status) if os.WIFSIGNALED(status) else "lost", "calls": 0, "paused": paused}


if __name__ == "__main__":
    import_all()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
