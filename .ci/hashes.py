"""The hashes of everything that CI installs: .ci/hashes.txt, made from constraints.txt.

    python .ci/hashes.py              # make it again: asks the package index, as pip would
    python .ci/hashes.py --check      # exit 1, and say what to run, where the two do not agree
    python .ci/hashes.py --installed  # exit 1 where something is installed that has no hash
    python .ci/hashes.py --compare FOLDER  # exit 1 where a file in it has none of the hashes

Every file of a pinned version that a CPython from 3.11 on can use on Linux or macOS is listed, as
pip sees it where it is configured: on the index, and among wheels that lie on this machine. Lines
that are there already are kept for the same version, so that files of other machines stay listed.

torch has a list of its own, and is downloaded, compared and then installed from the file: told to
require hashes, pip prefers a file whose hash an index states, which is the CUDA build, to the one
for CPUs that a machine may have lying by.
"""

from __future__ import annotations

import configparser
import hashlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
CONSTRAINTS, HASHES = HERE.parent / "constraints.txt", HERE / "hashes.txt"
APART = {"torch": HERE / "hashes-torch.txt"}
REMAKE = "run `make hashes` and commit .ci/hashes*.txt"
PLATFORM = re.compile(r"any|(many)?linux.*(x86_64|aarch64)|macosx.*")
OURS = {"blockfold", "pip"}
OF_TORCH = re.compile(r"(nvidia|cuda)-.*|triton")
"""Libraries that a CUDA build of torch pins and brings itself; CI's build for CPUs has none."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Canonical name -> version, of lines NAME==VERSION."""
    lines = re.findall(r"^([\w.-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {canonical(name): version for name, version in lines}


def setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(HERE.parent / "setup.cfg")
    return config


def markers() -> dict[str, str]:
    """What setup.cfg says of packages that are not for every platform."""
    lines = [line for line in setup()["options"]["install_requires"].splitlines() if ";" in line]
    found = (line.split(";", 1) for line in lines)
    return {canonical(re.split(r"[<>=~!]", name)[0].strip()): text.strip() for name, text in found}


def listed() -> dict[str, set[str]]:
    """NAME==VERSION -> hashes, of the files as they are."""
    found: dict[str, set[str]] = {}
    text = "\n".join(file.read_text() for file in (HASHES, *APART.values()) if file.exists())
    for entry in re.split(r"\n(?=\S)", text):
        match = re.match(r"([\w.-]+)==([^\s;\\]+)", entry)
        if match:
            found[f"{canonical(match[1])}=={match[2]}"] = set(
                re.findall("sha256:([0-9a-f]+)", entry)
            )
    return found


def is_used(filename: str, version: str) -> bool:
    """Whether a file is a wheel of that version for a CPython and a platform that CI may be on."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename
    from packaging.version import InvalidVersion, Version

    try:
        _, found, _, tags = parse_wheel_filename(filename)
    except (InvalidWheelFilename, InvalidVersion):
        return False
    if found.public != Version(version).public:
        return False
    return any(
        PLATFORM.fullmatch(tag.platform)
        and (tag.interpreter in ("py3", "py2.py3") or _is_recent(tag.interpreter, tag.abi))
        for tag in tags
    )


def _is_recent(interpreter: str, abi: str) -> bool:
    match = re.fullmatch(r"cp3(\d+)", interpreter)
    return match is not None and (abi == "abi3" or (int(match[1]) >= 11 and not abi.endswith("t")))


class Index:
    """Files of a package, as pip sees them with its settings on this machine."""

    def __init__(self) -> None:
        from pip._internal.commands import create_command
        from pip._internal.index.collector import LinkCollector

        command = create_command("download")
        options, _ = command.parse_args([])
        with command.main_context():
            session = command.get_default_session(options)  # type: ignore[attr-defined]
            self.collector = LinkCollector.create(session, options=options)

    def hashes(self, name: str, version: str) -> set[str]:
        from pip._internal.index.collector import parse_links
        from pip._internal.models.link import Link

        found = set()
        for location in self.collector.search_scope.get_index_urls_locations(name):
            page = self.collector.fetch_response(Link(location))
            for link in () if page is None else parse_links(page):
                if is_used(link.filename, version):
                    found.add(_hash_of(link.hash if link.hash_name == "sha256" else None, link))
        for folder in self.collector.search_scope.find_links:
            for file in Path(folder).glob("*.whl"):
                if canonical(file.name.split("-")[0]) == name and is_used(file.name, version):
                    found.add(hashlib.sha256(file.read_bytes()).hexdigest())
        return found


def _hash_of(stated: str | None, link: object) -> str:
    """The hash an index states; that of the file itself where it lies on this machine."""
    if stated is not None:
        return stated
    if getattr(link, "is_file", False):
        return hashlib.sha256(Path(getattr(link, "file_path", "")).read_bytes()).hexdigest()
    raise SystemExit(f"{link}: the index states no sha256")


def make() -> None:
    index, known, only = Index(), listed(), markers()
    head = "# Made by .ci/hashes.py from constraints.txt; do not edit."
    pages = {file: [head] for file in (HASHES, *APART.values())}
    for name, version in sorted(pins().items()):
        found = index.hashes(name, version) | known.get(f"{name}=={version}", set())
        if not found:
            raise SystemExit(f"{name}=={version}: no wheel for it; pin another version")
        where = f" ; {only[name]}" if name in only else ""
        lines = [f"{name}=={version}{where}", *(f"--hash=sha256:{one}" for one in sorted(found))]
        pages[APART.get(name, HASHES)].append(" \\\n    ".join(lines))
    for file, entries in pages.items():
        file.write_text("\n".join(entries) + "\n")


def stale() -> Iterator[str]:
    """What of .ci/hashes.txt is not as constraints.txt has it."""
    wanted = {f"{name}=={version}" for name, version in pins().items()}
    yield from (f"{pin} has no hash" for pin in sorted(wanted - listed().keys()))
    yield from (f"{pin} is no longer pinned" for pin in sorted(listed().keys() - wanted))


def unhashed() -> Iterator[str]:
    """What is installed beside what .ci/hashes.txt lists."""
    known = listed()
    for found in importlib.metadata.distributions():
        pin = f"{canonical(found.name)}=={found.version.split('+')[0]}"
        name = canonical(found.name)
        if name not in OURS and pin not in known and not OF_TORCH.fullmatch(name):
            yield f"{pin} was installed without a hash; pin it in constraints.txt"


def strangers(folder: Path) -> Iterator[str]:
    """Files that are none of those listed."""
    known = set[str]().union(*listed().values())
    for file in sorted(folder.iterdir()):
        if hashlib.sha256(file.read_bytes()).hexdigest() not in known:
            yield f"{file.name} is not one of the files whose hashes are listed"


def main(words: list[str]) -> None:
    match words:
        case []:
            make()
            return
        case ["--check"]:
            faults = list(stale())
        case ["--installed"]:
            faults = list(unhashed())
        case ["--compare", folder]:
            faults = list(strangers(Path(folder)))
        case _:
            sys.exit(__doc__)
    if faults:
        sys.exit("\n".join([*faults, f"if constraints.txt has changed, {REMAKE}"]))


if __name__ == "__main__":
    main(sys.argv[1:])
