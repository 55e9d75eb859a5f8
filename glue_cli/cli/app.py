"""The program: its commands, and the conversion of errors to text and exit codes, which only happens here."""

import atexit
import io
import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from glue_cli import __version__
from glue_cli.cli.check import check
from glue_cli.cli.completion import join_assignment, mend_zsh
from glue_cli.cli.evaluate import evaluate
from glue_cli.cli.finetune import finetune
from glue_cli.cli.init import init
from glue_cli.cli.mix import mix
from glue_cli.cli.options import is_on
from glue_cli.cli.output import print_error
from glue_cli.cli.report import report
from glue_cli.cli.show import show
from glue_cli.cli.signals import ignore_signals, ignoring_signals, unwind_on_signals
from glue_cli.cli.train_expert import train_expert
from glue_cli.foundation.errors import UNREADABLE, GlueError, ResourceError, UsageError
from glue_cli.foundation.memory import is_out_of_memory
from glue_cli.foundation.ranks import place_of, speaks
from glue_cli.foundation.stopping import INTERRUPTED, Lost, Stopped

app = typer.Typer(
    name="glue",
    help="Blend expert checkpoints into one model for a new domain; learn the coefficients by forward passes alone.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train-expert")(train_expert)
app.command("check")(check)
app.command("mix")(mix)
app.command("finetune")(finetune)
app.command("evaluate")(evaluate)
app.command("report")(report)
app.command("show")(show)
app.command("init")(init)


# The commands that several processes share; of the others, the first process of a job does all.
_SHARED = ("train-expert", "mix", "finetune", "evaluate")

# What to do where memory runs out, by command.
_OUT_OF_MEMORY = {
    "train-expert": "use a smaller train.batch_size, or a machine with more memory",
    "mix": "use a smaller mix.batch_size, --bank disk, or a machine with more memory",
    "check": "use a smaller mix.batch_size, or a machine with more memory",
    "finetune": "use a smaller finetune.batch_size, or a machine with more memory",
    "evaluate": "use --precision bf16, --device cpu where a GPU ran out, or a machine with more memory",
}
_MORE_MEMORY = "use a machine with more memory"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"glue {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, metavar="", help="Print the version and exit."
        ),
    ] = False,
) -> None:
    if not (place_of(os.environ).is_first or context.invoked_subcommand in _SHARED):
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise UsageError("no command given", hint="glue COMMAND --help explains a command")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, print its error if there is one, and return the exit code."""
    join_assignment(os.environ)
    mend_zsh()
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        result = app(args=args, prog_name="glue", standalone_mode=False)
        sys.stdout.flush()
        return _report_interrupt() if result == INTERRUPTED else 0  # typer's result after Ctrl-C
    except KeyboardInterrupt:
        return _report_interrupt()
    except Stopped as stopped:
        with ignoring_signals():  # torchrun ends the other processes of a job once it finds that one has ended
            return _report_stop(stopped)
    except BrokenPipeError:  # the reader of the output has closed it
        return _leave_pipe()
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # raised by typer or rich for the same reason
            return _leave_pipe()
        raise
    except typer.TyperException as error:
        return _report(_as_usage_error(error))
    except GlueError as error:
        return _report(error)
    except OSError as error:
        return _report(_as_resource_error(error))
    except Exception as error:
        if is_out_of_memory(error):
            return _report(ResourceError("out of memory", hint=_OUT_OF_MEMORY.get("".join(args[:1]), _MORE_MEMORY)))
        if speaks(os.environ):
            traceback.print_exc()
        return 1


def run() -> None:
    """Entry point of the command `glue`."""
    unwind_on_signals()
    _allow_many_files()
    _set_up_torch()
    for name in ("stderr", "stdout"):  # if the caller closed it, the next opened file would get its descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be valid text
    try:
        code = main()
    except SystemExit as error:  # a signal's
        code = error.code if isinstance(error.code, int) else 1
    if _is_profiled():
        sys.exit(code)  # lets the profiler write its results
    _leave(code)


def _is_profiled() -> bool:
    monitoring = getattr(sys, "monitoring", None)  # used by cProfile in Python 3.12 and newer
    return sys.getprofile() is not None or bool(monitoring and monitoring.get_tool(monitoring.PROFILER_ID))


def _leave(code: int) -> NoReturn:
    """Exit at once: Python would spend 0.3 s on freeing torch's objects one by one."""
    ignore_signals()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or its reader is gone
            stream.flush()
    os._exit(code)


def _allow_many_files() -> None:
    """Raise the limit of open files as far as allowed: a blend has all shards of all experts open."""
    with suppress(ValueError, OSError):  # some systems do not allow it
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _set_up_torch() -> None:
    """Set what torch reads when it is imported."""
    # OpenMP threads that wait in long busy loops slow each other down as soon as other programs run: beside another
    # training on two cores, the digits' CNN took between 8 s and more than 50 s, but 7 to 9 s with short loops. With
    # nothing else running, short loops make ResNet-20 train 6 % slower.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # glue does not use NumPy


def _leave_pipe() -> int:
    _drop_output()
    return 128 + signal.SIGPIPE


def _drop_output() -> None:
    """Discard what is still buffered for stdout, so that writing it does not fail again when Python exits."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_interrupt() -> int:
    print_error(GlueError("interrupted; nothing half-written is left behind"))
    return INTERRUPTED


def _report_stop(stopped: Stopped) -> int:
    if not (speaks(os.environ) if isinstance(stopped, Lost) else place_of(os.environ).is_first):
        return stopped.exit_code
    if stopped.state:
        error = GlueError(
            f"stopped by {stopped.by}; the state is in '{stopped.state}'", hint="the same line with --resume goes on"
        )
    else:
        error = GlueError(f"stopped by {stopped.by}; no state was saved", hint="run it again")
    print_error(error)
    return stopped.exit_code


def _report(error: GlueError) -> int:
    if not speaks(os.environ):
        return error.exit_code
    if is_on("GLUE_DEBUG"):
        traceback.print_exc()
    print_error(error)
    return error.exit_code


def _as_usage_error(error: typer.TyperException) -> GlueError:
    from pydantic import ValidationError  # imported here to keep --version and --help fast

    message = error.format_message().rstrip(".").replace(". Did you mean", "; did you mean")
    if isinstance(error.__cause__, ValidationError):  # a value of the wrong type: "Input should be a valid integer"
        value = error.__cause__.errors()[0]["input"]
        message = message.replace("Input should be", "wanted").partition(", unable to")[0] + f", found '{value}'"
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "glue"
    what = "commands" if command == "glue" else "options"
    return UsageError(message[:1].lower() + message[1:], hint=f"{command} --help lists the {what}")


def _as_resource_error(error: OSError) -> GlueError:
    if error.filename:
        return ResourceError(f"'{error.filename}' cannot be read or written: {error.strerror}", hint=UNREADABLE)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    hint = "free some space where stdout is sent to; what --output names is written by then"
    return ResourceError(f"stdout cannot be written: {error.strerror}", hint=hint)
