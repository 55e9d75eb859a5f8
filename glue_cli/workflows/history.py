"""A run's history: a JSON line a step or epoch, each saying what it is, on disk as soon as it is known."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glue_cli.core.errors import ResourceError
from glue_cli.workflows.as_json import as_json

Write = Callable[[dict[str, Any]], None]


@contextmanager
def writing_history(path: Path | None, **always: Any) -> Iterator[Write]:
    """Give a function that writes one line; `always` is part of every line. Without a path, lines go nowhere."""
    if path is None:
        yield lambda line: None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise ResourceError(f"'{path}' cannot be written: {error.strerror}", hint="name another --history") from None
    with file:
        yield lambda line: print(as_json({"schema": "glue.history/1", **always, **line}), file=file)
