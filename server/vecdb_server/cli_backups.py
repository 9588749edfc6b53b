"""The commands about backups: backup, restore, backups, verify, prune.

A target is a folder or URL of this machine, or with --server the name of a folder below that server's
backup_root. Listing, verifying and pruning need no database.
"""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cli_output import json_line, plain, size, table
from .cli_target import (
    EXIT_INCOMPLETE,
    EXIT_OK,
    EXIT_PROBLEMS,
    EXIT_USAGE,
    CommandFailed,
    Target,
    failed,
    opened,
)


def run_backup(args: argparse.Namespace, target: Target) -> int:
    """Backs up, and with --keep prunes afterwards. Reads a folder beside its server, if it has one."""
    with opened(target) as database, _shown("backup") as progress:
        info = database.backup(
            args.target,
            collections=args.collection,
            kind=args.kind,
            verify=not args.no_verify,
            limit_bytes_s=args.limit_mb_s and args.limit_mb_s * 1e6,
            progress=progress,
        )
    if args.json:
        json_line(_info(info))
    else:
        _print_backup(info)
    if args.keep is None:
        return EXIT_OK
    return _prune(args, target if target.data is None else None)


def _print_backup(info: Any) -> None:
    print(f"{info.id}: {info.kind}, {size(info.bytes)} in {info.files} files")
    for one in info.collections:
        print(
            f"  {one.name}: {one.count:,} records at commit {one.sequence}, {one.rows:,} rows new"
        )


def run_backups(args: argparse.Namespace, target: Target) -> int:
    """Lists the backups of a target."""
    with _verbs(_named(args, target)) as verbs:
        found = verbs.list_backups(args.target)
    if args.json:
        for info in found:
            json_line(_info(info))
        return EXIT_OK
    table(
        ("id", "kind", "records", "size", "collections (commits that can be restored)"),
        [
            (
                info.id,
                info.kind,
                sum(one.count for one in info.collections),
                size(info.bytes),
                ", ".join(f"{c.name} ({c.oldest_sequence}-{c.sequence})" for c in info.collections),
            )
            for info in found
        ],
    )
    return EXIT_OK


def run_verify(args: argparse.Namespace, target: Target) -> int:
    """EXIT_PROBLEMS when a backup could not be restored, EXIT_INCOMPLETE when what there is can be, but may not be all:
    a script that looks at nothing else must hear that the newest backup is gone."""
    with _verbs(_named(args, target)) as verbs, _shown("verify") as progress:
        report = verbs.verify_backups(args.target, backup=args.backup, progress=progress)
    if args.json:
        json_line(plain(report))
    else:
        verdict = "ok" if report.ok else f"{len(report.problems)} problems"
        lacking = len(report.incomplete)
        more = f"; {lacking} more without a manifest" if lacking else ""
        print(
            f"{report.backups} backups, {report.files} files, {size(report.bytes)}: {verdict}{more}"
        )
        for problem in report.problems:
            print(f"  {problem}")
        for one in report.incomplete:
            print(
                f"  {one}: no manifest.json, so it counts as no backup and cannot be restored: under way or interrupted, or "
                "it was complete and its manifest was lost. If `vecdb backups` has listed it before, put its manifest "
                "back from a copy of the target, or take another backup"
            )
        if not report.backups:
            print("  no backup can be restored from here: is this the right target?")
    if not report.ok:
        return EXIT_PROBLEMS
    # Who asks for one backup asks nothing of the others.
    all_there = report.backups and (args.backup is not None or not report.incomplete)
    return EXIT_OK if all_there else EXIT_INCOMPLETE


def run_prune(args: argparse.Namespace, target: Target) -> int:
    """Removes old chains."""
    return _prune(args, _named(args, target))


def _named(args: argparse.Namespace, target: Target) -> Target | None:
    """The server whose backups are meant; None where none was named."""
    return target if args.server else None


def _prune(args: argparse.Namespace, server: Target | None) -> int:
    with _verbs(server) as verbs:
        removed = verbs.prune_backups(args.target, keep=args.keep)
    if args.json:
        json_line({"removed": removed})
    else:
        for one in removed:
            print(f"{one}: removed")
    return EXIT_OK


def run_restore(args: argparse.Namespace, target: Target) -> int:
    """Into a new folder (--into), or into a database that is there under names that are free."""
    chosen: dict[str, str] = {}
    for given in args.collection or ():
        name, _, new_name = given.partition(":")
        chosen[name] = new_name or name
    asked = {
        "backup": args.backup,
        "collections": chosen or None,
        "at": None if args.at is None else _time(args.at),
        "sequence": args.sequence,
    }
    if args.into is not None:
        import vecdb

        with _engine_faults(), _shown("restore") as progress:
            result: Any = vecdb.restore(args.target, args.into, **asked, progress=progress)
    else:
        with opened(target, write=True) as database, _shown("restore") as progress:
            result = database.restore(args.target, **asked, progress=progress)
    if args.json:
        json_line(plain(result))
    else:
        for one in result.collections:
            source = "" if one.source == one.name else f", from {one.source}"
            print(f"{one.name}: {one.count:,} records at commit {one.sequence}{source}")
        for alias, name in sorted(result.aliases.items()):
            print(f"{alias} points to {name}")
    return EXIT_OK


def _time(text: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        raise CommandFailed(
            f"--at takes a time such as 2026-01-31T12:00:00+01:00, given {text!r}", EXIT_USAGE
        ) from None


def _info(info: Any) -> dict[str, Any]:
    return {**plain(info), "taken_at": info.taken_at.isoformat()}


@contextmanager
def _verbs(server: Target | None) -> Iterator[Any]:
    """The verbs that need no database: the client's for a server, else the engine's."""
    if server is not None:
        with opened(server) as client:
            yield client
        return
    import vecdb

    with _engine_faults():
        yield vecdb


@contextmanager
def _engine_faults() -> Iterator[None]:
    from vecdb.errors import VecdbError

    try:
        yield
    except VecdbError as error:
        raise failed(error) from error
    except OSError as error:
        raise CommandFailed(str(error)) from error


@contextmanager
def _shown(label: str) -> Iterator[Callable[[Any], None]]:
    """A bar for each collection in turn."""
    from vecdb_client.progress import Progress

    bars: dict[str, Progress] = {}

    def show(progress: Any) -> None:
        if progress.collection not in bars:
            for bar in bars.values():
                bar.close()
            bars[progress.collection] = Progress(
                f"{label} {progress.collection}", progress.total_rows or None
            )
        bars[progress.collection].show(progress.rows)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


def add_commands(
    command: Callable[..., argparse.ArgumentParser],
    add_target: Callable[[Any], None],
    add_connection: Callable[[Any], None],
) -> None:
    """The parsers of these commands."""
    backup = command(
        "backup",
        run_backup,
        "back up a database while it serves",
        "  vecdb backup /mnt/backups/docs --data ./data      beside the server of that folder, or without\n"
        "  vecdb backup nightly --server 127.0.0.1:7700      below the server's backup_root\n"
        "  vecdb backup s3://bucket/docs --data ./data --keep 4",
    )
    _add_target_name(backup)
    backup.add_argument(
        "--collection", action="append", metavar="NAME", help="only this one; may be repeated"
    )
    backup.add_argument(
        "--kind",
        choices=("auto", "full", "incremental"),
        default="auto",
        help="default auto: incremental where there is a backup to continue",
    )
    backup.add_argument("--no-verify", action="store_true", help="do not read the files back")
    backup.add_argument(
        "--limit-mb-s", type=float, metavar="N", help="most megabytes written a second"
    )
    backup.add_argument(
        "--keep", type=int, metavar="N", help="remove all but the newest N chains afterwards"
    )
    add_target(backup)

    restore = command(
        "restore",
        run_restore,
        "make collections from a backup",
        "  vecdb restore /mnt/backups/docs --into ./restored\n"
        "  vecdb restore /mnt/backups/docs --into ./then --at 2026-01-31T12:00:00Z\n"
        "  vecdb restore nightly --collection docs:docs-old --server 127.0.0.1:7700",
    )
    _add_target_name(restore)
    restore.add_argument(
        "--into", type=Path, metavar="FOLDER", help="make a new database there, without a server"
    )
    restore.add_argument("--backup", metavar="ID", help="default: the newest")
    restore.add_argument(
        "--collection",
        action="append",
        metavar="NAME[:NEW]",
        help="only this one, under a new name if one is given; may be repeated",
    )
    restore.add_argument(
        "--at", metavar="TIME", help="as of this moment: ISO 8601, local time without a zone"
    )
    restore.add_argument(
        "--sequence", type=int, metavar="N", help="as of this commit of the one --collection"
    )
    add_target(restore)

    backups = command(
        "backups", run_backups, "list the backups of a target", "  vecdb backups /mnt/backups/docs"
    )
    verify = command(
        "verify",
        run_verify,
        "read backups and say what is wrong with them",
        "  vecdb verify /mnt/backups/docs",
    )
    verify.add_argument(
        "--backup", metavar="ID", help="this one and those it goes back to; default: all"
    )
    prune = command(
        "prune", run_prune, "remove old backups", "  vecdb prune /mnt/backups/docs --keep 4"
    )
    prune.add_argument(
        "--keep", type=int, required=True, metavar="N", help="chains that stay, the newest ones"
    )
    for one in (backups, verify, prune):
        _add_target_name(one)
        group = one.add_argument_group("where the backups are")
        group.add_argument(
            "--server", metavar="HOST:PORT", help="TARGET is below that server's backup_root"
        )
        add_connection(group)
        one.add_argument("--json", action="store_true", help="for machines: one JSON object a line")


def _add_target_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", help="folder or URL; with a server, a folder below its backup_root"
    )
