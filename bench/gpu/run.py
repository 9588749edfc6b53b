"""The command line of `python -m bench gpu`: parts in processes of their own, the budget, results, the page."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .. import measure
from . import exact, filters, goals, insert, kinds, kmeans, limits, probe, served, tiled
from .bounds import limits_of
from .budget import Budget
from .plan import Task, read

RESULTS = Path(__file__).resolve().parent.parent / "results"
NO_CARD = 3
_PROBE_S = 60.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

PARTS: dict[str, tuple[ModuleType, float]] = {
    "limits": (limits, 12),
    "exact": (exact, 128),
    "insert": (insert, 48),
    "tiled": (tiled, 6),
    "filters": (filters, 77),
    "kmeans": (kmeans, 30),
    "kinds": (kinds, 182),
    "served": (served, 100),
}
"""In the order they run, with their shares of the time, about the seconds that they took of an H200; `page` of each shows its
lines, `needs` says what each of its cases takes."""

WHEN_NAMED = frozenset({"served"})
"""Parts that run only where they are named: beside all others they do not fit into the eight minutes."""

_OF_LIMITS = {"exact": exact.shares, "tiled": tiled.shares}
"""Parts whose cells are shares of what the part `limits` measures."""

Lines = list[dict[str, Any]]


def say(text: str) -> None:
    print(text, flush=True)


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    chosen = set(args.only or PARTS.keys() - WHEN_NAMED)
    if chosen & _OF_LIMITS.keys():
        chosen.add("limits")  # shares are shares of what this run has measured
    parts = [part for part in PARTS if part in chosen]
    date = dt.datetime.now(dt.UTC)
    label = ["gpu"] if args.backend == "gpu" else ["gpu", "dry"]
    name = "-".join([f"{date:%Y-%m-%d}", *label, *(args.only or ())])
    args.results.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    budget = Budget(args.seconds, {part: PARTS[part][1] for part in parts})
    with tempfile.TemporaryDirectory(prefix="vecdb-gpu-", dir=args.folder) as folder:
        run = _Run(args, Path(folder), args.results / f"{name}.jsonl")
        card, why = run.card()
        if card is None:
            say(f"no GPU: {why}\n`--backend cpu` runs the same parts over small sets on faiss-cpu.")
            return NO_CARD
        results: dict[str, Any] = {
            "command": shlex.join(["python", "-m", "bench", "gpu", *argv]),
            "date": date.isoformat(timespec="seconds"),
            "machine": {**_machine(), **({"commit": args.commit} if args.commit else {})},
            "card": card,
            "seconds": args.seconds,
            "rounds": args.rounds,
            "seed": args.seed,
            "k": 10,
            "parts": {},
            "failed": {},
            "part_s": {},
        }
        for part in parts:
            granted_s = budget.grant(part)
            say(f"{part} ({granted_s:.0f} s)")
            begun_s = time.monotonic()
            failure = run.part(part, PARTS[part][0], granted_s, budget.kill_after(granted_s))
            if failure:
                results["failed"][part] = failure
                say(f"  {part}: {failure}")
            results["part_s"][part] = round(time.monotonic() - begun_s, 1)
            results["parts"][part] = [one for one in run.lines() if one["part"] == part]
            results["total_s"] = round(time.monotonic() - started_s, 1)
            # After every part: a run that is cut off leaves what it has.
            text = write(args.results, name, results)
    say(f"\n{text}\nwritten to {args.results / name}.json, .md and .jsonl")
    return 1 if results["failed"] or failures(results) else 0


def _machine() -> dict[str, Any]:
    """As in all measurements; a lent machine need not have git, and then the commit is not known."""
    if shutil.which("git"):
        return measure.machine()
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {"numpy": np.__version__},
        "commit": "unknown",
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument("--backend", choices=("gpu", "cpu"), default="gpu",
                        help="cpu: a dry run over small sets on faiss-cpu")  # fmt: skip
    parser.add_argument("--arrays", choices=("auto", "torch", "cupy", "numpy"), default="auto",
                        help="what makes data and right answers; default: torch or CuPy on the card")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=455.0,
                        help="time for all parts; the largest sizes come last and are left out first")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", choices=tuple(PARTS), action="append", help="this part; may be given again"
    )
    parser.add_argument(
        "--commit",
        default="",
        help="what is measured, where git cannot say: on a lent machine, from a copy",
    )
    parser.add_argument("--folder", type=Path, help="where data is made; default: the system's own")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


class _Run:
    """Starts parts one after another, each in a process and a process group of its own."""

    def __init__(self, args: argparse.Namespace, folder: Path, lines: Path) -> None:
        self._args = args
        self._folder = folder
        self._lines = lines
        self._lines.unlink(missing_ok=True)

    def lines(self) -> Lines:
        return read(self._lines)

    def card(self) -> tuple[dict[str, Any] | None, str]:
        """What the probe found, or why there is no card.

        Where it dies with the array library that was found, once more with numpy: two CUDA libraries in one
        process are the likeliest cause, and FAISS can be measured alone.
        """
        failure = self.part("card", probe, _PROBE_S, _PROBE_S)
        if failure and self._args.arrays == "auto" and self._args.backend == "gpu":
            say(f"  the probe {failure}; once more without torch and CuPy")
            self._args.arrays = "numpy"
            failure = self.part("card", probe, _PROBE_S, _PROBE_S)
        for line in self.lines():
            if line["kind"] == "card":
                return {k: v for k, v in line.items() if k not in ("part", "kind")}, ""
            if line["kind"] == "no card":
                failure = line["why"]
        self._lines.unlink(missing_ok=True)
        return None, failure or "the probe said nothing"

    def part(self, part: str, module: ModuleType, seconds: float, kill_s: float) -> str:
        """Runs a part to its end; what went wrong, or nothing. Its lines stay whatever happens."""
        task = Task(
            part=part,
            module=module.__name__,
            backend=self._args.backend,
            arrays=self._args.arrays,
            tiny=self._args.backend == "cpu",
            seed=self._args.seed,
            rounds=self._args.rounds,
            seconds=seconds,
            folder=str(self._folder),
            lines=str(self._lines),
        )
        # A dry run is small: on a busy machine threads that wait for each other take seconds.
        threads = dict.fromkeys(_THREADS, "1") if task.tiny else {}
        paths = os.pathsep.join(map(os.path.abspath, sys.path))
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu.child", task.text()],
            env={**os.environ, "PYTHONPATH": paths, **threads},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=kill_s)
        except subprocess.TimeoutExpired:
            return f"killed after {kill_s:.0f} s; what it had measured stays"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code == 0:
            return ""
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"ended with {cause}; what it had measured stays"


def failures(results: dict[str, Any]) -> Lines:
    return [one for lines in results["parts"].values() for one in lines if one["kind"] == "failed"]


def write(folder: Path, name: str, results: dict[str, Any]) -> str:
    """Writes <name>.json and <name>.md into `folder`; the text of the page."""
    whole = {**results, **_concluded(results)}
    text = page(whole)
    (folder / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return text


def _concluded(results: dict[str, Any]) -> dict[str, Any]:
    """The limits, the cells of exact and tiled search with their shares of them, and the verdicts."""
    found = limits_of(_cases(results, "limits"))
    cells = {
        part: [shares(case, found) for case in _cases(results, part)]
        for part, shares in _OF_LIMITS.items()
    }
    return {"limits": found, **cells, "goals": goals.judged(cells["exact"])}


def _cases(results: dict[str, Any], part: str) -> Lines:
    return [one for one in results["parts"].get(part, ()) if one["kind"] == "case"]


def page(results: dict[str, Any]) -> str:
    machine, card = results["machine"], results["card"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    about = ", ".join(
        [card["device"], *(f"{key} {card[key]}" for key in ("memory", "driver", "clock", "power") if key in card)]
    )  # fmt: skip
    bounds_only = any(one.get("lower_bound") for one in _cases(results, "limits"))
    parts = [
        f"# Search on the card, measured {results['date'][:10]}\n",
        f"`{results['command']}`\n",
        f"{about}; FAISS {card['faiss']} ({card['options']}), {card['arrays']}.\n",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']},"
        f" Python {machine['python']}; {versions}; commit {machine['commit']}; load at start"
        f" {machine['load_at_start']}. {results['rounds']} rounds, medians, lowest and highest in brackets.\n",
        f"{results['seconds']:.0f} s allowed, {results['total_s']:.0f} s taken:"
        f" {', '.join(f'{part} {taken:.0f}' for part, taken in results['part_s'].items())}.\n",
        *goals.page(results["goals"], card, bounds_only),
    ]
    for part, (module, _) in PARTS.items():
        if part not in results["parts"]:
            continue
        show: Callable[[Lines, dict[str, Any]], list[str]] = module.page
        cases = results[part] if part in _OF_LIMITS else _cases(results, part)
        parts += show(cases, card) if cases else [f"## {part}\n\nNothing was measured.\n"]
        if part in results["failed"]:
            parts.append(f"The part {part} {results['failed'][part]}.\n")
        for one in results["parts"][part]:
            if one["kind"] in ("left out", "failed"):
                parts.append(f"{one['kind'].capitalize()}: {one['name']}: {one['why']}.\n")
    return "\n".join(parts)
