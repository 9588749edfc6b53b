"""The command: what is asked for, the file it goes to, and an end that leaves no process behind."""

from __future__ import annotations

import argparse
import datetime as dt
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import measure
from ..sources import CACHE, prepare
from . import duration
from .lines import SCHEMA, Lines
from .plan import PATIENCE, SYSTEMS, TARGETS, WORKLOADS, K, Plan
from .turns import Turns

_INTERRUPTED = 130
_MINUTES = 120.0


def main(argv: Sequence[str]) -> int:
    """Runs it; 0, or 130 after Ctrl-C, which leaves the lines written until then."""
    args = _arguments(argv)
    source = prepare(args.dataset, args.rows, args.queries, args.seed, args.cache)
    now = dt.datetime.now(dt.UTC)
    name = f"{now:%Y-%m-%d}-run-{source.name}-{source.rows}.jsonl"
    with (
        tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=args.work) as work,
        Lines(args.out / name) as lines,
    ):
        plan, left_out = _fitting(args, _plan(args, Path(work)), source.rows)
        machine = measure.machine()
        lines.write(
            "run",
            schema=SCHEMA,
            date=now.isoformat(timespec="seconds"),
            command=shlex.join(["python", "-m", "bench", "run", *argv]),
            commit=machine.pop("commit"),
            machine={**machine, "disk": _filesystem(Path(work))},
            dataset=source.described(),
            k=K,
            rounds=plan.rounds,
            loads=plan.loads,
            target_recall=list(TARGETS),
            left_out=left_out,
        )
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            Turns(plan, source, lines).run()
        except KeyboardInterrupt:
            print("broken off; what was measured is kept", file=sys.stderr)
            return _INTERRUPTED
        finally:
            signal.signal(signal.SIGTERM, before)
            print(lines.path)
    return 0


def _fitting(args: argparse.Namespace, plan: Plan, rows: int) -> tuple[Plan, dict[str, str]]:
    """The plan with the workloads that fit into the time, unless some were named; what is left out, and why."""
    if args.workloads:
        seconds = duration.total_s(plan, args.workloads, rows, len(plan.systems))
        print(f"about {seconds / 60:.0f} min", file=sys.stderr)
        return plan, {}
    choice = duration.chosen(plan, rows, len(plan.systems), args.minutes * 60)
    print(f"about {choice.seconds / 60:.0f} min: {', '.join(choice.workloads)}", file=sys.stderr)
    for name, why in choice.left_out.items():
        print(
            f"left out: {name}, {why} (--minutes, or --workload {name} by itself)", file=sys.stderr
        )
    return choice.plan, choice.left_out


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _plan(args: argparse.Namespace, work: Path) -> Plan:
    return Plan(
        systems=tuple(args.systems),
        workloads=frozenset(args.workloads or WORKLOADS),
        folder=work,
        rounds=args.rounds,
        loads=args.loads,
        long_rounds=args.long_rounds,
        callers=tuple(args.callers),
        apart=args.callers_in == "processes",
        seconds=args.seconds,
        load_seconds=args.load_seconds,
        write_seconds=args.write_seconds,
        mix_seconds=args.mix_seconds,
        load_query_rows=args.load_query_rows,
        patience=(args.patience, PATIENCE[1] + args.load_seconds),
        many=args.many,
        many_seconds=args.many_seconds,
        growth=tuple(args.growth),
    )


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    usual = Plan((), frozenset(), Path())
    parser = argparse.ArgumentParser(
        prog="python -m bench run",
        description="vecdb beside other systems. A system that is not installed is skipped.",
    )
    add: Any = parser.add_argument
    add("--systems", type=_names(SYSTEMS), default=list(SYSTEMS), metavar="NAME,…",
        help=f"of {', '.join(SYSTEMS)}; default: all")  # fmt: skip
    add(
        "--dataset",
        default="wordnet",
        help="wordnet, clusters, or a .npy, HDF5, Parquet or fvecs file",
    )
    add("--workloads", "--workload", type=_names(WORKLOADS), metavar="NAME,…",
        help=f"of {', '.join(WORKLOADS)}, or all; default: those that fit into --minutes")  # fmt: skip
    add(
        "--minutes", type=float, default=_MINUTES, help="that the default workloads may take, about"
    )
    add("--rows", type=int, help="at most so many; default: all")
    add("--queries", type=int, default=1_000)
    add("--seed", type=int, default=1)
    add("--rounds", type=int, default=usual.rounds, help="of queries")
    add("--loads", type=int, default=usual.loads, help="rounds of what writes")
    add("--long-rounds", type=int, default=usual.long_rounds, help="of many and growth")
    add("--callers", type=_numbers, default=list(usual.callers), metavar="N,…")
    add("--callers-in", choices=("processes", "one"), default="processes",
        help="several callers of a server: a process each, or all in one")  # fmt: skip
    add("--seconds", type=float, default=usual.seconds, help="of one pass of queries")
    add("--load-seconds", type=float, default=usual.load_seconds, help="a load may take at most")
    add(
        "--write-seconds",
        type=float,
        default=usual.write_seconds,
        help="upserts, and deletes, at most",
    )
    add(
        "--mix-seconds",
        type=float,
        default=usual.mix_seconds,
        help="of the mix at each number of callers",
    )
    add("--patience", type=float, default=PATIENCE[0], help="seconds until a call is given up")
    add("--load-query-rows", type=int, default=usual.load_query_rows)
    add("--many", type=_many, default=usual.many, metavar="COLLECTIONSxROWS")
    add("--many-seconds", type=float, default=usual.many_seconds)
    add("--growth", type=_numbers, default=list(usual.growth), metavar="ROWS,…")
    add("--out", type=Path, default=Path("bench/results"))
    add("--cache", type=Path, default=CACHE, help="folder of data sets and exact answers")
    add("--work", type=Path, help="folder of the systems' files; default: the system's for such")
    return parser.parse_args(argv)


def _names(known: Any) -> Any:
    def names(text: str) -> list[str]:
        found = [one.strip() for one in text.split(",") if one.strip()]
        if found == ["all"]:
            return list(known)
        unknown = [one for one in found if one not in known]
        if unknown or not found:
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown) or 'nothing'} is not among {', '.join(known)}"
            )
        return found

    return names


def _numbers(text: str) -> list[int]:
    return sorted({int(one) for one in text.split(",")})


def _many(text: str) -> tuple[int, int]:
    collections, _, rows = text.partition("x")
    return int(collections), int(rows)


def _filesystem(folder: Path) -> str:
    """The kind of file system that holds a folder; Linux."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "not known"
    place, best = folder.resolve().as_posix(), ("", "not known")
    for line in mounts.read_text().splitlines():
        _, point, kind = line.split()[:3]
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]
