"""Runs pip-audit against a local copy of the advisories of PyPI, where no service that knows them can be reached.

python tools/advisories.py FOLDER pip-audit ...

FOLDER is a clone of github.com/pypa/advisory-database. pip-audit asks it by the protocol of OSV over a port of this machine,
and its exit code is passed on. What the copy does not have is taken for no fault, as OSV itself does, so the age of the
copy is told.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


class Advisories:
    """The entries of one copy. Any thread."""

    def __init__(self, folder: Path) -> None:
        """SystemExit where it is no such copy."""
        self._folder = folder / "vulns"
        self.files = sorted(self._folder.glob("*/*.yaml"))
        if not self.files:
            raise SystemExit(f"{folder} is no copy of the advisory database: no vulns/*/*.yaml")

    def newest(self) -> str:
        """The day of the latest change of an entry."""
        found = (
            re.findall(r"^modified: \W?([\d-]{10})", one.read_text(), re.M) for one in self.files
        )
        return max((day for days in found for day in days), default="an unknown day")

    def of(self, name: str, version: str) -> list[Any]:
        """The entries that a version of a package is affected by. ValueError for a file that cannot be read."""
        wanted, given = canonicalize_name(name), Version(version)
        found = []
        for path in sorted((self._folder / wanted).glob("*.yaml")):
            try:
                # The loader that knows nothing but texts: a day stays one, and no object is made.
                entry = yaml.BaseLoader(path.read_text()).get_single_data()
                if any(_affects(one, wanted, given) for one in entry["affected"]):
                    found.append(entry)
            except (yaml.YAMLError, KeyError, TypeError, InvalidVersion) as error:
                raise ValueError(f"{path} cannot be read: {error!r}") from error
        return found


def _affects(affected: Any, name: str, version: Version) -> bool:
    package = affected["package"]
    if package["ecosystem"] != "PyPI" or canonicalize_name(package["name"]) != name:
        return False
    if version in _versions(affected.get("versions", ())):
        return True
    ranges = affected.get("ranges", ())
    return any(_is_within(one["events"], version) for one in ranges if one["type"] == "ECOSYSTEM")


def _versions(given: Iterable[str]) -> Iterator[Version]:
    for one in given:
        try:
            yield Version(one)
        except InvalidVersion:
            pass  # of a time before versions had a form; none that is asked for is such


def _is_within(events: Any, version: Version) -> bool:
    """Whether the last event up to a version says that it is affected."""
    affected = False
    steps = [(Version(at), kind) for event in events for kind, at in event.items()]
    for at, kind in sorted(steps):
        if kind == "introduced" and (version >= at or at == Version("0")):
            affected = True
        elif (kind == "fixed" and version >= at) or (kind == "last_affected" and version > at):
            affected = False
    return affected


def _handler(advisories: Advisories) -> type[BaseHTTPRequestHandler]:
    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                found = advisories.of(asked["package"]["name"], asked["version"])
            except ValueError as error:
                self.send_error(500, str(error).splitlines()[0])
                return
            body = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: pip-audit says what there is to say."""

    return Answers


def main(arguments: list[str]) -> int:
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder, *command = arguments
    advisories = Advisories(Path(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(advisories)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1/query"
        own = {**os.environ, "NO_PROXY": "127.0.0.1"}
        command += ["--vulnerability-service", "osv", "--osv-url", url]
        code = subprocess.run(command, env=own, check=False).returncode
        server.shutdown()
    print(
        f"asked {len(advisories.files):,} advisories, changed on {advisories.newest()} at the latest; later ones are not "
        "known to this copy",
        file=sys.stderr,
    )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
