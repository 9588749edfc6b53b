"""Which calls to the kernel each system makes to have a write on the disk before it acknowledges it.

    python -m bench syncs

Each system is opened in a process of its own and given some rows; then strace is attached to that process and all that
it has started, servers included, while it makes a few writes of each kind, and detached behind the last
acknowledgement. Counted is what comes in between, in all their threads. No time is measured: strace slows down what it
looks at.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .children import Child, ChildFailed, Missing, members
from .index.tables import table
from .measure import machine
from .run.plan import SYSTEMS
from .run.session import reason
from .sources import CACHE, Source, prepare

CALLS = ("fsync", "fdatasync", "msync", "sync_file_range", "syncfs", "sync")
"""What is counted, in the order of the columns. Of msync only what waits for the disk (MS_SYNC)."""
VERBS = ("insert", "upsert", "delete")
_FIRST = 50
"""Rows that are there before anything is counted: what a system makes with its first write is none of the others'."""
NO_STRACE = 3
"""Exit code where strace is not installed, or may look at no process here."""
_CALL = re.compile(r"^\d+ +(?P<name>\w+)\((?P<words>.*)")
_SEEN = re.compile(r"Process (\d+) attached|PTRACE_SEIZE, (\d+)\): No such process")
_LIMIT_S, _ATTACH_S, _LOOK_S = 120.0, 60.0, 0.02
_BUDGET_S = 3600.0


class NoStrace(Exception):
    """strace is missing or of no use here. The message says which."""


def main(argv: Sequence[str]) -> int:
    """Writes a page and its numbers to the results; 3 where strace cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m bench syncs", description=__doc__)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="by comma; default: all")
    parser.add_argument("--writes", type=int, default=20, help="of each kind (default 20)")
    parser.add_argument("--dataset", default="clusters")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of data sets")
    parser.add_argument("--work", type=Path, help="folder of the systems' files")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args(argv)
    names = args.systems.split(",")
    unknown = [one for one in names if one not in SYSTEMS]
    if unknown or args.writes < 1:
        parser.error(
            f"no system is called {', '.join(unknown)}" if unknown else "--writes: 1 or more"
        )
    source = prepare(args.dataset, 2 * args.writes + _FIRST, 1, args.seed, args.cache)
    try:
        version = _strace()
        with tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=args.work) as work:
            found = [_system(name, source, args.writes, Path(work)) for name in names]
    except NoStrace as error:
        print(f"python -m bench syncs: {error}")
        return NO_STRACE
    now = dt.datetime.now(dt.UTC)
    results = {
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "bench", "syncs", *argv]),
        "machine": machine(),
        "strace": version,
        "dataset": source.described(),
        "writes": args.writes,
        "systems": found,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{now:%Y-%m-%d}-syncs.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(page(results), encoding="utf-8")
    print(path.with_suffix(".md"))
    return 0


def _strace() -> str:
    """Its version."""
    if shutil.which("strace") is None:
        raise NoStrace("strace is not installed")
    done = subprocess.run(["strace", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].split()[-1]


def _system(name: str, source: Source, writes: int, work: Path) -> dict[str, Any]:
    """What it is, and by verb what was counted, or why it was not."""
    entry = SYSTEMS[name]
    found: dict[str, Any] = {"system": name, "verbs": {}}
    try:
        with Child(
            "bench.run.host:Host", source, entry.module, dict(entry.options), group=True
        ) as child:
            child.limit_s = _LIMIT_S
            about = child.call("describe")
            found |= {key: about[key] for key in ("version", "durability")}
            if about["role"] == "limit" or about["outside"]:
                why = (
                    "its server runs elsewhere" if about["outside"] else "it is an index in memory"
                )
                return {**found, "skipped": why}
            (work / name).mkdir()
            child.call("open", work / name / "data", True)
            child.call("load", 0, _FIRST, _BUDGET_S)
            for verb in VERBS:
                try:
                    found["verbs"][verb] = _counted(child, verb, writes)
                except ChildFailed as error:
                    found["verbs"][verb] = {"failed": reason(error)}
            child.call("close")
    except Missing as error:
        found["skipped"] = str(error).strip()
    except ChildFailed as error:
        found["skipped"] = reason(error)
    return found


def _counted(child: Child, verb: str, writes: int) -> dict[str, Any]:
    """The calls during so many writes of one row each."""
    with _traced(members(child.pid)) as counted:
        for number in range(writes):
            if verb == "insert":
                row = _FIRST + number
                child.call("load", row, row + 1, _BUDGET_S)
            else:
                # What is deleted are other rows than those that are replaced.
                row = number if verb == "upsert" else _FIRST + number
                child.call(verb, [row], _BUDGET_S)
    return {**counted, "open_synchronous": _synchronous(members(child.pid))}


@contextmanager
def _traced(pids: Sequence[int]) -> Iterator[dict[str, int]]:
    """A mapping that has, after the context, how often each of `CALLS` was made within it by these processes, and by
    those that they start. Raises NoStrace where strace cannot look at them."""
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="vecdb-strace-") as folder:
        trace, said = Path(folder) / "trace", Path(folder) / "said"
        words = ["strace", "-f", "-e", f"trace={','.join(CALLS)}", "-e", "signal=none"]
        words += ["-o", str(trace), *(word for pid in pids for word in ("-p", str(pid)))]
        with said.open("w") as errors:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=errors)
        try:
            _attached(process, said, set(pids))
            yield found
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=_ATTACH_S)
            finally:
                process.kill()
        found.update(counts(trace.read_text(errors="replace")))


def _attached(process: subprocess.Popen[bytes], said: Path, pids: set[int]) -> None:
    """Returns when strace looks at all of them."""
    until_s = time.monotonic() + _ATTACH_S
    while True:
        text = said.read_text(errors="replace")
        if pids <= {int(one or two) for one, two in _SEEN.findall(text)}:
            return
        if process.poll() is not None or time.monotonic() > until_s:
            raise NoStrace(f"strace can look at no process here: {text.strip()[-300:]}")
        time.sleep(_LOOK_S)


def counts(trace: str) -> dict[str, int]:
    """How often each of `CALLS` was begun, by the lines that strace wrote with -f."""
    calls = Counter(
        one["name"]
        for line in trace.splitlines()
        if (one := _CALL.match(line)) is not None
        if one["name"] != "msync" or "MS_SYNC" in one["words"]
    )
    return {name: calls[name] for name in CALLS}


def _synchronous(pids: Sequence[int]) -> int:
    """Files that these processes have open in a way in which each write waits for the disk (O_DSYNC, O_SYNC)."""
    total = 0
    for path in (one for pid in pids for one in Path(f"/proc/{pid}/fdinfo").glob("*")):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        flags = next((int(one.split()[1], 8) for one in lines if one.startswith("flags:")), 0)
        total += bool(flags & os.O_DSYNC)
    return total


def page(results: dict[str, Any]) -> str:
    """Markdown: a row for each system and verb, calls in all and for each write."""
    about, writes = results["machine"], results["writes"]
    rows, left = [], []
    for one in results["systems"]:
        if "skipped" in one:
            left.append(f"- {one['system']}: {one['skipped']}\n")
            continue
        for verb, found in one["verbs"].items():
            if "failed" in found:
                left.append(f"- {one['system']}, {verb}: {found['failed']}\n")
                continue
            each = sum(found[call] for call in CALLS) / writes
            numbers = [*(found[call] for call in CALLS), found["open_synchronous"]]
            words = (one["system"], one["version"], verb, f"{each:g}")
            rows.append((*words, *(f"{number}" for number in numbers)))
    header = ("system", "version", "verb", "calls a write", *CALLS, "files open with O_DSYNC")
    said = [
        f"- {one['system']}: {one['durability']}\n" for one in results["systems"] if one["verbs"]
    ]
    return "\n".join(
        [
            f"# Calls that wait for the disk, {results['date'][:10]}\n",
            f"`{results['command']}`\n",
            f"{writes} writes of each kind, of one row each, into a collection of {_FIRST} rows of"
            f" {results['dataset']['dimension']} dimensions; all calls of these names from when strace"
            f" {results['strace']} was attached until the last write was acknowledged, in all threads and processes"
            " of the system, also those that are made behind. Of msync those that wait (MS_SYNC). A write to a file"
            " that is open with O_DSYNC waits for the disk without such a call, as LMDB's of its first pages does;"
            " what io_uring does is not seen.\n",
            f"{about['cpu']}, {about['cores']} cores, {about['system']}, Python {about['python']}; commit"
            f" {about['commit']}.\n",
            table(header, rows),
            "What each adapter says of it:\n",
            "".join(said),
            *(["Not counted:\n", "".join(left)] if left else []),
        ]
    )
