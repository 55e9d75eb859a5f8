"""The outcome of gates as JUnit XML, which CI systems show as tests."""

from xml.etree import ElementTree

from glue_cli.foundation.printable import printable
from glue_cli.results.evaluate import EvaluateResult


def junit_text(result: EvaluateResult) -> bytes:
    """Return a test suite with one test per gate, or one per checkpoint if there are no gates."""
    gates = result.gates or []
    n_tests = len(gates) or len(result.results)
    suite = ElementTree.Element(
        "testsuite", name="glue evaluate", tests=str(n_tests), failures=str(len(result.missed))
    )
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
    ElementTree.indent(suite)
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
