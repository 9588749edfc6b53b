"""`vecdb top`: a server at a glance, again and again, from its metrics.

Needs no terminal library: the alternate screen, and a line at a time. Keys: q ends it, space takes a new sample now.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from .cli_output import size
from .cli_target import EXIT_OK, EXIT_USAGE, CommandFailed, Target, opened
from .samples import Between, Sample

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def add_top(command: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = command(
        "top",
        run_top,
        "show what a server does, again and again",
        "  vecdb top\n  vecdb top --interval-s 10\n  vecdb top --once      one picture, for scripts",
    )
    parser.add_argument(
        "--interval-s", type=float, default=2.0, metavar="X", help="seconds between two; default 2"
    )
    parser.add_argument("--once", action="store_true", help="one picture, then stop")
    return parser


def run_top(args: argparse.Namespace, target: Target) -> int:
    if target.data is not None:
        raise CommandFailed("top looks at a server; give --server instead of --data", EXIT_USAGE)
    if not 0.1 <= args.interval_s <= 3_600:
        raise CommandFailed("--interval-s is from 0.1 to 3600", EXIT_USAGE)
    with opened(target) as client:
        before = Sample.read(client.metrics())
        if args.once or not (sys.stdout.isatty() and sys.stdin.isatty()):
            time.sleep(args.interval_s)
            between = Between(before, Sample.read(client.metrics()))
            print("\n".join(picture(between, target.address, 200, 10_000)))
            return EXIT_OK
        with _screen() as key_within:
            between = Between(before, before)
            while True:
                _draw(picture(between, target.address, *shutil.get_terminal_size()))
                if key_within(args.interval_s) in ("q", "Q", "\x04"):
                    return EXIT_OK
                now = Sample.read(client.metrics())
                before, between = now, Between(before, now)


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[float], str]]:
    """The terminal, ours until the end; gives a function that waits for a key."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    sys.stdout.write(_ENTER)
    try:
        tty.setcbreak(descriptor)

        def key_within(limit_s: float) -> str:
            ready, _, _ = select.select([descriptor], [], [], limit_s)
            # An end of the terminal counts as leaving.
            return (os.read(descriptor, 1).decode("latin-1") or "q") if ready else ""

        yield key_within
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _draw(lines: list[str]) -> None:
    sys.stdout.write(_HOME + "".join(f"{line}{_CLEAR_LINE}\r\n" for line in lines) + _CLEAR_BELOW)
    sys.stdout.flush()


def picture(between: Between, address: str, width: int, height: int) -> list[str]:
    """What is drawn: at most `height` - 1 lines of at most `width` characters."""
    lines = [*_head(between, address), "", *_calls(between), "", *_collections(between)]
    lines += _devices(between)
    if len(lines) > height - 1:
        lines = [*lines[: height - 2], f"... {len(lines) - height + 2} lines more"]
    return [line[:width] for line in lines]


def _head(between: Between, address: str) -> list[str]:
    now = between.now
    version = "".join(now.labels("vecdb_info", "version"))
    up_s = max(0.0, time.time() - now.one("vecdb_start_time_seconds"))
    cpu = between.rate("process_cpu_seconds_total")
    waiting = now.one("vecdb_calls_waiting")
    batch = between.grown("vecdb_search_batch_queries_sum") / max(
        1.0, between.grown("vecdb_search_batch_queries_count")
    )
    return [
        f"vecdb {version} at {address}, up {_time(up_s)}",
        f"calls/s {between.rate('vecdb_calls_seconds_count'):,.0f}  "
        f"running {now.one('vecdb_calls_running'):,.0f}  waiting {waiting:,.0f}  "
        f"refused/s {between.rate('vecdb_calls_refused_total'):,.1f}  "
        f"slow queries {now.one('vecdb_slow_queries_total'):,.0f}",
        f"queries a search {batch:.1f}  commits/s {between.rate('vecdb_commit_seconds_count'):,.0f}  "
        f"CPU {100 * cpu:.0f} %  memory {size(int(now.one('process_resident_memory_bytes')))}  "
        f"files open {now.one('process_open_fds'):,.0f}",
    ]


def _calls(between: Between) -> list[str]:
    rows = []
    for method in between.now.labels("vecdb_calls_seconds_count", "method"):
        name = "vecdb_calls_seconds"
        calls = between.grown(f"{name}_count", method=method)
        good = between.grown(f"{name}_count", method=method, code="OK")
        if calls:
            rows.append(
                (method, f"{calls / between.seconds:,.1f}",
                 _ms(between.quantile(name, 0.5, method=method)),
                 _ms(between.quantile(name, 0.99, method=method)),
                 f"{(calls - good) / between.seconds:,.1f}")
            )  # fmt: skip
    rows.sort(key=lambda row: -float(row[1].replace(",", "")))
    return _table(("call", "a second", "p50 ms", "p99 ms", "errors/s"), rows)


def _collections(between: Between) -> list[str]:
    now = between.now
    rows = []
    for name in now.labels("vecdb_rows_live", "collection"):
        own = {"collection": name}
        main = {**own, "vector": ""}
        kinds = [found for found, _ in now.of("vecdb_index_info", **main)]
        kind = (
            f"{kinds[0]['kind']} {kinds[0]['quantization']} {kinds[0]['device']}" if kinds else ""
        )
        audited = [value for _, value in now.of("vecdb_index_audited_recall", **main)]
        recall = f"{now.one('vecdb_index_calibrated_recall', **main):.3f}"
        building = now.one("vecdb_index_building", **own)
        progress = f"{100 * now.one('vecdb_index_build_progress', **main):.0f} %"
        share = now.one("vecdb_map_used_bytes", **own) / max(
            1.0, now.one("vecdb_map_limit_bytes", **own)
        )
        rows.append(
            (name, f"{now.one('vecdb_rows_live', **own):,.0f}",
             f"{now.one('vecdb_rows_dead', **own):,.0f}",
             f"{now.one('vecdb_index_tail_rows', **main):,.0f}", kind,
             f"{recall}, live {audited[0]:.3f}" if audited else recall,
             progress if building else "",
             f"{between.rate('vecdb_commit_seconds_count', **own):,.1f}",
             f"{size(int(now.one('vecdb_disk_bytes', **own)))}", f"{100 * share:.1f} %")
        )  # fmt: skip
    head = ("collection", "live", "dead", "fresh", "index", "recall", "building", "commits/s",
            "disk", "map")  # fmt: skip
    return _table(head, rows)


def _devices(between: Between) -> list[str]:
    now = between.now
    rows = []
    for name in now.labels("vecdb_device_used_bytes", "device"):
        own = {"device": name}
        states = [f["state"] for f, value in now.of("vecdb_device_state", **own) if value]
        rows.append(
            (name, "".join(states), size(int(now.one("vecdb_device_used_bytes", **own))),
             f"{now.one('vecdb_device_placements', **own):,.0f}",
             f"{now.one('vecdb_device_queued', **own):,.0f}",
             f"{between.rate('vecdb_device_queries_total', **own):,.0f}",
             f"{now.one('vecdb_device_restarts_total', **own):,.0f}")
        )  # fmt: skip
    if not rows:
        return []
    head = ("device", "state", "used", "placements", "waiting", "queries/s", "restarts")
    return ["", *_table(head, rows)]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in [head, *rows]:
        # Names to the left, everything else to the right.
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    return lines


def _ms(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{1_000 * seconds:,.2f}"


def _time(seconds: float) -> str:
    minutes, hours = int(seconds) // 60 % 60, int(seconds) // 3_600 % 24
    days = int(seconds) // 86_400
    return (
        f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min"
    )
