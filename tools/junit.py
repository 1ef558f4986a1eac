"""What `verify` found, as a JUnit file: one suite, one case for each thing that had to hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

from ..ir.errors import BadInput, BlockfoldError
from ..ir.staging import staged, write_bytes
from ..passes.verify import Verdict, shown
from .comparing import Unlike
from .results import Verified

SUITE = "blockfold verify"
SAME = "inputs and outputs are unchanged"
JUDGED = "model and data can be judged"
REAL = "the data is not made up"
KEPT = "the promise is kept"
CASES = (SAME, JUDGED, REAL, KEPT)
"""In the order in which they are found out."""

UNFIT = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold."""


def reported(path: Path, judge: Callable[[], Verified]) -> Verified:
    """What `judge` finds, also written to the file; whether that can be is found out first.

    Of an error, raised again, the case where it came up is one, and later cases are skipped.
    """
    if path.suffix != ".xml":
        raise BadInput(f"--junit {path}: name it FILE.xml, so that no other file is replaced")
    with staged(path) as folder:
        found = _outcome(judge)
        write_bytes(folder / path.name, document(found))
    if isinstance(found, BlockfoldError):
        raise found
    return found


def _outcome(judge: Callable[[], Verified]) -> Verified | BlockfoldError:
    try:
        return judge()
    except BlockfoldError as error:
        return error


def document(found: Verified | BlockfoldError) -> bytes:
    """The suite as XML."""
    suite = of_error(found) if isinstance(found, BlockfoldError) else of_verified(found)
    counts = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    totals = {name: str(len(suite.findall(f"testcase/{tag}"))) for name, tag in counts.items()}
    suite.attrib.update({"tests": str(len(CASES)), **totals})
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def of_verified(found: Verified) -> ET.Element:
    """The suite of a verdict, its figures as properties."""
    verdict = found.verdict
    suite = ET.Element("testsuite", name=SUITE)
    properties = ET.SubElement(suite, "properties")
    for name, value in _figures(verdict, found.held_back).items():
        ET.SubElement(properties, "property", name=name, value=_fit(str(value)))
    for name in (SAME, JUDGED):
        _case(suite, name)
    real, kept = _case(suite, REAL), _case(suite, KEPT)
    if found.random:
        _say(real, "failure", "random data says nothing of quality: give --data")
    if verdict.promise is None:
        _say(kept, "skipped", "nothing was promised: give --max-drop")
    elif not verdict.kept:
        limit, promise = (shown(verdict.metric, x) for x in (verdict.bound.upper, verdict.promise))
        _say(kept, "failure", f"drop of {verdict.metric} at most {limit}, promised {promise}")
    return suite


def of_error(error: BlockfoldError) -> ET.Element:
    """The suite of what ended before there was a verdict."""
    suite = ET.Element("testsuite", name=SUITE)
    at = CASES.index(SAME if isinstance(error, Unlike) else JUDGED)
    for index, name in enumerate(CASES):
        case = _case(suite, name)
        if index == at:
            _say(case, "error", str(error))
        elif index > at:
            _say(case, "skipped", f"not reached: {CASES[at]}")
    return suite


def _figures(verdict: Verdict, held_back: bool) -> dict[str, object]:
    return {
        "metric": verdict.metric,
        "output": verdict.output,
        "samples": verdict.samples,
        "held_back": held_back,
        "before": verdict.before,
        "after": verdict.after,
        "drop": verdict.drop,
        "limit": verdict.bound.upper,
        "limit_method": verdict.bound.method,
        "certified": verdict.bound.certified,
        "promise": "none" if verdict.promise is None else verdict.promise,
    }


def _case(suite: ET.Element, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname="blockfold.verify", name=name)


def _say(case: ET.Element, tag: str, message: str) -> None:
    ET.SubElement(case, tag, message=_fit(message))


def _fit(text: str) -> str:
    return UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)
