"""The program: its commands, and the one place where an error becomes text and an exit code."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer

from glue_cli import __version__
from glue_cli.cli.evaluate import evaluate
from glue_cli.cli.finetune import finetune
from glue_cli.cli.mix import mix
from glue_cli.cli.output import print_error
from glue_cli.cli.train_expert import train_expert
from glue_cli.core.errors import GlueError, ResourceError, UsageError

app = typer.Typer(
    name="glue",
    help="Blend expert checkpoints into one model for a new domain; learn the coefficients by forward passes alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train-expert")(train_expert)
app.command("mix")(mix)
app.command("finetune")(finetune)
app.command("evaluate")(evaluate)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"glue {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code of DESIGN's table, having printed the error where there is one."""
    try:
        result = app(args=list(sys.argv[1:] if argv is None else argv), prog_name="glue", standalone_mode=False)
        sys.stdout.flush()
        if result == 130:  # typer's own answer to Ctrl-C
            print_error(GlueError("interrupted; nothing half-written is left behind"))
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        print_error(GlueError("interrupted; nothing half-written is left behind"))
        return 130
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except typer.TyperException as error:
        return _report(_as_usage_error(error))
    except GlueError as error:
        return _report(error)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            traceback.print_exc()
            return 1
        return _report(ResourceError("out of memory", hint="use a smaller batch_size, or a machine with more memory"))
    except Exception:
        traceback.print_exc()
        return 1


def run() -> None:
    """Entry point of the command `glue`."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # unwinds, so that temporary files are removed


def _report(error: GlueError) -> int:
    if os.environ.get("GLUE_DEBUG"):
        traceback.print_exc()
    print_error(error)
    return error.exit_code


def _as_usage_error(error: typer.TyperException) -> GlueError:
    message = error.format_message().rstrip(".")
    if "Usage:" in message:  # no arguments: help is the answer
        print(message)
        return UsageError("no command given", hint="glue --help lists the commands")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "glue"
    return UsageError(message[:1].lower() + message[1:], hint=f"{command} --help lists the options")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate" in str(error)
