"""The outcome of gates as JUnit XML, which CI systems show as tests."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from glue_cli.foundation.errors import GlueError
from glue_cli.foundation.printable import printable
from glue_cli.results.evaluate import EvaluateResult

_NAME = "glue evaluate"


def junit_text(result: EvaluateResult) -> bytes:
    """Return a test suite with one test per gate, or one per checkpoint if there are no gates."""
    gates = result.gates or []
    n_tests = len(gates) or len(result.results)
    suite = ElementTree.Element("testsuite", name=_NAME, tests=str(n_tests), failures=str(len(result.missed)))
    for gate in gates:
        bar = "" if gate.demand == "compare" else f" {gate.bar:g}"
        name = f"{gate.figure} {gate.demand}{bar}"
        test = ElementTree.SubElement(suite, "testcase", classname=printable(gate.checkpoint), name=name)
        if gate.missed:
            ElementTree.SubElement(test, "failure", message=printable(gate.text))
    if not gates:
        for evaluated in result.results:
            ElementTree.SubElement(suite, "testcase", classname=printable(evaluated.checkpoint), name="evaluated")
    lines = [
        f"{evaluated.checkpoint}: {', '.join(f'{name} {value}' for name, value in evaluated.figures.items())}"
        for evaluated in (*result.results, *([result.baseline] if result.baseline else []))
    ]
    ElementTree.SubElement(suite, "system-out").text = "\n".join(map(printable, lines))
    return _text(suite)


def junit_text_of_error(checkpoints: Sequence[str], error: Exception) -> bytes:
    """Return a test suite in which each checkpoint has the error that ended the evaluation of them all."""
    n = str(len(checkpoints))
    suite = ElementTree.Element("testsuite", name=_NAME, tests=n, failures="0", errors=n)
    if isinstance(error, GlueError):
        message, lines = error.message, [*error.items, f"hint: {error.hint}"]
    else:
        message, lines = f"{type(error).__name__}: {error}", []
    for checkpoint in checkpoints:
        test = ElementTree.SubElement(suite, "testcase", classname=printable(checkpoint), name="evaluated")
        said = ElementTree.SubElement(test, "error", message=printable(message), type=type(error).__name__)
        said.text = "\n".join(map(printable, [message, *lines]))
    return _text(suite)


def is_junit(path: Path) -> bool:
    """Tell whether a file is a report of glue evaluate."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return f'<testsuite name="{_NAME}"'.encode() in file.read(200)


def _text(suite: ElementTree.Element) -> bytes:
    ElementTree.indent(suite)
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
