"""How gates came out as JUnit's XML, which CI systems show as tests."""

from xml.etree import ElementTree

from glue_cli.foundation.printable import printable
from glue_cli.results.evaluate import EvaluateResult


def junit_text(result: EvaluateResult) -> bytes:
    """Return a test suite with a test for each gate, or for each checkpoint where nothing was demanded."""
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
        for found in result.results:
            ElementTree.SubElement(suite, "testcase", classname=printable(found.checkpoint), name="evaluated")
    lines = [
        f"{found.checkpoint}: {', '.join(f'{name} {value}' for name, value in found.figures.items())}"
        for found in (*result.results, *([result.baseline] if result.baseline else []))
    ]
    ElementTree.SubElement(suite, "system-out").text = "\n".join(map(printable, lines))
    ElementTree.indent(suite)
    text: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return text + b"\n"
