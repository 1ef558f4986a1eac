"""`verify --junit`: a well-formed suite that tells what held, whatever came out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import onnx
import pytest

from blockfold.ir.errors import BadInput
from blockfold.tests.networks import FLOAT, LOGITS, Net
from blockfold.tests.tools.harness import DROP, WIDTH, CommandLine, network, untouched
from blockfold.tests.tools.place import BAD_INPUT, NOT_MET, Place, Words, assert_one_line
from blockfold.tools.junit import CASES, JUDGED, KEPT, REAL, SAME, document, reported


def outcomes(root: ET.Element) -> dict[str, str]:
    """Of every case: passed, failure, error or skipped; the suite's own counts must agree."""
    assert (root.tag, [child.tag for child in root]) == ("testsuites", ["testsuite"])
    (suite,) = root
    found: dict[str, str] = {}
    for case in suite.iter("testcase"):
        assert case.get("classname") == "blockfold.verify"
        said = [child.tag for child in case]
        assert len(said) <= 1 and all(child.get("message") for child in case)
        found[case.attrib["name"]] = said[0] if said else "passed"
    assert tuple(found) == CASES
    for count, tag in [("failures", "failure"), ("errors", "error"), ("skipped", "skipped")]:
        assert suite.get(count) == str(sum(said == tag for said in found.values()))
    assert suite.get("tests") == str(len(found))
    return found


def figures(root: ET.Element) -> dict[str, str]:
    return {p.attrib["name"]: p.attrib["value"] for p in root.iter("property")}


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "verdict.xml"
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_a_promise_kept(place: Place, target: Path, command: CommandLine) -> None:
    words: Words = ["verify", place.model, place.small, "--data", place.data, "--max-drop", DROP]
    plain = command(*words)
    ran = command(*words, "--junit", target)
    assert ran == plain and ran.code == 0
    root = ET.parse(target).getroot()
    assert outcomes(root) == dict.fromkeys(CASES, "passed")
    said = figures(root)
    assert (said["metric"], said["promise"], said["held_back"]) == ("accuracy", "0.05", "True")
    assert float(said["drop"]) <= float(said["limit"]) <= 0.05
    verdict = command(*words, "--json").document["verdict"]
    assert float(said["limit"]) == verdict["bound"]["upper"]


def test_a_promise_broken_and_none_given(place: Place, target: Path, command: CommandLine) -> None:
    other = place.onnx(network(seed=5))
    words: Words = ["verify", place.model, other, "--data", place.data, "--junit", target]
    assert command(*words).code == 0
    assert outcomes(ET.parse(target).getroot())[KEPT] == "skipped"
    assert command(*words, "--max-drop", DROP).code == NOT_MET
    root = ET.parse(target).getroot()
    assert outcomes(root) == dict.fromkeys(CASES, "passed") | {KEPT: "failure"}
    (failure,) = root.iter("failure")
    assert "promised 5.00 points" in failure.attrib["message"]


def test_another_interface_is_an_error_of_its_own(
    place: Place, target: Path, command: CommandLine
) -> None:
    net = Net(0)
    net.head("x", WIDTH)
    proto = net.model({"x": (FLOAT, ("batch", "tokens", WIDTH))}, LOGITS)
    proto.graph.input[0].name = "y"
    for node in proto.graph.node:
        node.input[:] = ["y" if name == "x" else name for name in node.input]
    other = place.onnx(proto)
    words: Words = ["verify", place.model, other, "--data", place.data, "--junit", target]
    line = assert_one_line(command(*words), BAD_INPUT, ["different inputs"])
    root = ET.parse(target).getroot()
    assert outcomes(root) == dict.fromkeys(CASES, "skipped") | {SAME: "error"}
    (error,) = root.iter("error")
    assert error.attrib["message"] == line


def test_unfit_data_and_made_up_data(place: Place, target: Path, command: CommandLine) -> None:
    words: Words = ["verify", place.model, place.small, "--junit", target]
    assert command(*words, "--data", "no.npz").code == BAD_INPUT
    skipped = dict.fromkeys(CASES, "skipped")
    assert outcomes(ET.parse(target).getroot()) == skipped | {SAME: "passed", JUDGED: "error"}
    assert command(*words, "--random-data", "100", "--metric", "agreement").code == 0
    assert outcomes(ET.parse(target).getroot())[REAL] == "failure"


def test_whatever_a_message_holds_the_file_is_xml() -> None:
    root = ET.fromstring(document(BadInput('\x00\x1b[1m <node> & \ud800 "/é/" ]]>')))
    (error,) = root.iter("error")
    assert error.attrib["message"] == '\ufffd\ufffd[1m <node> & \ufffd "/é/" ]]>'
    assert outcomes(root)[JUDGED] == "error"


@pytest.mark.parametrize("name", ["model.onnx", "no/verdict.xml"])
def test_where_it_cannot_be_written_nothing_is_judged(name: str, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "model.onnx")

    def judge() -> object:
        raise AssertionError("judged")

    with untouched(tmp_path), pytest.raises(BadInput, match=r"\.xml|cannot write"):
        reported(tmp_path / name, judge)  # type: ignore[arg-type]
