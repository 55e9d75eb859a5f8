"""Compare two revisions of glue on one machine: the same commands, the same bytes, JSON, messages and exit codes.

    python tests/compare_revisions.py OLD_CHECKOUT NEW_CHECKOUT
    python tests/compare_revisions.py OLD NEW --only 'methods: spsa' --keep /tmp/differences

Both work on the same small experts, on the CPU, in float32, on one thread, each in a folder of its own. What depends
on time and memory is left out: `wall_s` and `peak_bytes`, and such figures in what people read. Prints a line a case,
and exits with 1 if any differs, or if the old revision does not do what the case is for.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revisions.cases import Case, all_cases
from revisions.world import COMMANDS, write_variants, write_world

WORKER = Path(__file__).parent / "revisions" / "worker.py"
MEASURED = {"wall_s", "peak_bytes"}
MAX_NAMED = 4

Files = dict[str, bytes]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


class Revision:
    """A checkout at work in its own copy of the world."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.checkout, self.folder = checkout, folder
        variables = {name: value for name, value in os.environ.items() if not name.startswith("GLUE_")}
        variables |= {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": f"{folder}.cache", "GLUE_DEVICE": "cpu"}
        variables |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            cwd=folder,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, arguments: list[str]) -> None:
        """Begin a command; the answer is `hear`d."""
        assert self._process.stdin
        print(json.dumps(arguments), file=self._process.stdin, flush=True)

    def hear(self) -> Answer:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the worker of {self.checkout} has ended")
        return Answer(**json.loads(line))

    def run(self, arguments: list[str]) -> Answer:
        self.ask(arguments)
        return self.hear()

    def close(self) -> None:
        self._process.communicate()

    def written(self, world: Path) -> Files:
        """Return every file that is not as it was, without the folder's own path; one that is gone is empty."""
        before, after = _stamps(world), _stamps(self.folder)
        changed = [name for name in sorted(before | after) if before.get(name) != after.get(name)]
        return {name: self._content(self.folder / name) for name in changed}

    def _content(self, path: Path) -> bytes:
        if not path.exists():
            return b""
        return path.read_bytes().replace(str(self.folder).encode(), b"HERE") + f"\0{path.stat().st_mode:o}".encode()

    def clean(self, world: Path) -> None:
        """Bring the folder back to what it was."""
        before, after = _stamps(world), _stamps(self.folder)
        for name in after.keys() - before.keys():
            (self.folder / name).unlink()
        for name in before:
            if before[name] != after.get(name):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(world / name, self.folder / name)
        kept = {parent for name in before for parent in Path(name).parents}
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and path.relative_to(self.folder) not in kept:
                shutil.rmtree(path)


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of each file by its name; a world that is copied keeps both."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


# ---- the world


def make_world(checkout: Path, folder: Path) -> None:
    """Write the files that both revisions start from; experts and results are the old revision's."""
    folder.mkdir()
    write_world(folder)
    maker = Revision(checkout, folder)
    for line in COMMANDS:
        result, _, command = line.rpartition(": ")
        answer = maker.run(command.split())
        if answer.code:
            sys.exit(f"{checkout}: 'glue {command}' exits with {answer.code}:\n{answer.err}")
        if result:
            (folder / result).write_text(answer.out)
    maker.close()
    write_variants(folder)


# ---- what differs


def run_case(case: Case, old: Revision, new: Revision, world: Path, *, texts: bool, keep: Path | None) -> list[str]:
    """Run a case with both revisions; return what differs, one short text a thing."""
    found: list[str] = []
    for number, command in enumerate(case.commands):
        for revision in (old, new):
            revision.ask(command)
        before, after = old.hear(), new.hear()
        wanted = case.code if number == len(case.commands) - 1 else 0
        if before.code != wanted:
            found.append(f"the old revision exits with {before.code}, wanted {wanted}: {_last_lines(before.err)}")
        found += compare_answers(before, after, old, new, texts=texts)
        if found:
            break
    files = [revision.written(world) for revision in (old, new)]
    found += compare_files(*files)
    if found and keep:
        for revision in (old, new):
            _keep(keep / re.sub(r"[^\w.]+", "-", case.name) / revision.folder.name, revision, world)
    for revision in (old, new):
        revision.clean(world)
    return found


def compare_answers(before: Answer, after: Answer, old: Revision, new: Revision, *, texts: bool) -> Iterator[str]:
    if before.code != after.code:
        yield f"exit code {after.code}, was {before.code}: {_last_lines(after.err)}"
        return
    outs = [answer.out.replace(str(by.folder), "HERE") for answer, by in ((before, old), (after, new))]
    errs = [answer.err.replace(str(by.folder), "HERE") for answer, by in ((before, old), (after, new))]
    results = [_parse(out) for out in outs]
    if all(result is not None for result in results):
        keys = list(_differing_keys(*results))
        if keys:
            yield f"stdout: {_named(keys)}"
    elif texts and _timeless(outs[0]) != _timeless(outs[1]):
        yield f"stdout: {_first_difference(*map(_timeless, outs))}"
    if texts and _timeless(errs[0]) != _timeless(errs[1]):
        yield f"stderr: {_first_difference(*map(_timeless, errs))}"


def compare_files(before: Files, after: Files) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        if name not in after or name not in before:
            yield f"{name}: is {'not written' if name in before else 'written'} by the new revision alone"
            continue
        content = [_without_measures(name, files[name]) for files in (before, after)]
        if content[0] != content[1]:
            yield f"{name}: {_explain(name, *content)}"


def _without_measures(name: str, content: bytes) -> bytes:
    if not name.endswith((".json", ".jsonl")):
        return content
    text, _, mode = content.rpartition(b"\0")
    lines = [json.dumps(_strip(json.loads(line))).encode() for line in text.splitlines()] if name.endswith("l") else [
        json.dumps(_strip(json.loads(text))).encode()
    ]  # fmt: skip
    return b"\n".join(lines) + b"\0" + mode


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip(inner) for key, inner in value.items() if key not in MEASURED}
    return [_strip(inner) for inner in value] if isinstance(value, list) else value


def _explain(name: str, before: bytes, after: bytes) -> str:
    if before.rpartition(b"\0")[0] == after.rpartition(b"\0")[0]:
        return "another mode"
    if name.endswith((".safetensors", ".json", ".jsonl")):
        read = _tensors if name.endswith(".safetensors") else _lines
        keys = list(_differing_keys(read(before), read(after)))
        return _named(keys) if keys else "the header's form, or the order of the tensors"
    try:
        return _first_difference(before.decode(), after.decode())
    except UnicodeDecodeError:
        return "other bytes"


def _tensors(content: bytes) -> dict[str, Any]:
    """Return a safetensors file's metadata, and every tensor's shape, dtype and bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    found = {"metadata": {k: _parse(v) or v for k, v in header.pop("__metadata__", {}).items()}}
    for name, tensor in header.items():
        begin, end = (8 + length + offset for offset in tensor["data_offsets"])
        found[name] = {**tensor, "data_offsets": None, "data": hashlib.sha256(content[begin:end]).hexdigest()}
    return found


def _lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.rpartition(b"\0")[0].splitlines()]


def _differing_keys(before: Any, after: Any, at: str = "") -> Iterator[str]:
    """Yield the paths of all values that differ, those that are measured left out."""
    if isinstance(before, dict) and isinstance(after, dict):
        if [*before] != [*after] and before.keys() == after.keys():
            yield f"{at or 'all'} in another order"
        for key in [*before, *(after.keys() - before.keys())]:
            if key not in MEASURED:
                yield from _differing_keys(
                    before.get(key, "missing"), after.get(key, "missing"), f"{at}.{key}"[not at :]
                )
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, pair in enumerate(zip(before, after, strict=True)):
            yield from _differing_keys(*pair, f"{at}[{number}]")
    elif before != after or type(before) is not type(after):
        short = [f" {text}" if len(text := str(value)) < 60 else "" for value in (before, after)]
        yield f"{at or 'all'}{short[1] and ' is' + short[1]}{short[0] and ', was' + short[0]}"


def _named(items: list[str]) -> str:
    more = f"; and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return "; ".join(items[:MAX_NAMED]) + more


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _timeless(text: str) -> str:
    """Take times and memory out of what people read, and the lines that stand there for slow machines alone."""
    lines = [line for line in text.splitlines() if not re.match(r"[^:]+: \d+ %, ", line)]
    text = "\n".join(lines)
    text = re.sub(r"[\d.:]+( s)?, peak memory .*", "TIME, peak memory SIZE", text)
    text = re.sub(r"[\d.]+ \w+ are free", "SIZE are free", text)
    return re.sub(r"\bin \d[\d.:]*( s)?", "in TIME", text)


def _first_difference(before: str, after: str) -> str:
    old, new = before.splitlines(), after.splitlines()
    number = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    shown = [repr(lines[number][:160]) if number < len(lines) else "nothing" for lines in (new, old)]
    return f"line {number + 1} is {shown[0]}, was {shown[1]}"


def _last_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-2:])[:300]


def _keep(folder: Path, revision: Revision, world: Path) -> None:
    for name in revision.written(world):
        if (revision.folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(revision.folder / name, folder / name)


# ---- the program


def compare(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Compare case by case; return how many differ."""
    cases = [case for case in all_cases() if re.search(options.only, case.name)]
    if not cases:
        sys.exit(f"--only {options.only}: no case has such a name")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        make_world(options.old.resolve(), root / "world")
        revisions = []
        for name, checkout in (("old", options.old), ("new", options.new)):  # as long as each other: paths in headers
            shutil.copytree(root / "world", root / name)
            revisions.append(Revision(checkout.resolve(), root / name))
        n_different = 0
        for case in cases:
            found = run_case(case, *revisions, root / "world", texts=not options.ignore_texts, keep=options.keep)
            n_different += bool(found)
            say(f"{case.name}: " + (f"DIFFERENT: {found[0]}" if found else "same"))
            for other in found[1:]:
                say(f"    {other}")
        for revision in revisions:
            revision.close()
    say(f"{len(cases)} cases, {n_different} different")
    return n_different


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("new", type=Path, metavar="NEW_CHECKOUT")
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose names have this regular expression")
    parser.add_argument(
        "--ignore-texts", action="store_true", help="pass over messages and tables; exit codes, JSON and files count"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what was written where it differs")
    options = parser.parse_args()
    return 1 if compare(options, lambda line: print(line, flush=True)) else 0


if __name__ == "__main__":
    sys.exit(main())
