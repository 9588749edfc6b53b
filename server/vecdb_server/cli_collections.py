"""The commands about whole collections: create, list, drop, rename, alias, stats, check, compact,
cancel-build."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from .cli_output import json_line, pairs, plain, size, table
from .cli_repair import run_repair
from .cli_target import (
    EXIT_OK,
    EXIT_PROBLEMS,
    EXIT_USAGE,
    CommandFailed,
    Target,
    fault_of_one,
    opened,
)
from .cli_transfer import creation_settings


def run_create(args: argparse.Namespace, target: Target) -> int:
    with opened(target, write=True) as database:
        collection = database.create_collection(
            args.collection,
            dimension=args.dimension,
            exist_ok=args.exist_ok,
            **creation_settings(args),
        )
        info = collection.info
    if args.json:
        json_line(plain(info))
    else:
        print(f"{info.name}: {info.dimension} dimensions, {info.metric}, {info.storage}")
        for name, field in info.vectors.items():
            print(f"  {name}: {field.dimension} dimensions, {field.metric}, {field.storage}")
    return EXIT_OK


def run_list(args: argparse.Namespace, target: Target) -> int:
    """EXIT_PROBLEMS when any of them cannot be opened; the others are listed all the same."""
    with opened(target) as database:
        infos, counts = [], []
        for info in database.list_collections():
            count, error = _count(database, info)
            infos.append(info if error is None else dataclasses.replace(info, error=error))
            counts.append(count)
        aliases = database.list_aliases()
    code = EXIT_OK if all(info.error is None for info in infos) else EXIT_PROBLEMS
    pointing: dict[str, list[str]] = {}
    for alias, name in sorted(aliases.items()):
        pointing.setdefault(name, []).append(alias)
    if args.json:
        for info, count in zip(infos, counts, strict=True):
            json_line({**plain(info), "count": count, "aliases": pointing.get(info.name, [])})
        return code
    header = (
        "name",
        "records",
        "dimension",
        "metric",
        "storage",
        "index",
        "device",
        "aliases",
        "description",
    )
    table(
        header,
        [
            (
                info.name,
                count,
                info.dimension,
                info.metric,
                info.storage,
                info.index,
                info.device,
                ", ".join(pointing.get(info.name, [])),
                info.description.partition("\n")[0]
                if info.error is None
                else f"error: {info.error}",
            )
            for info, count in zip(infos, counts, strict=True)
        ],
    )
    return code


def _count(database: Any, info: Any) -> tuple[int | None, str | None]:
    """Records of a collection, or why they cannot be counted: what a list opens may be whole while the rest is not."""
    if info.error is not None:
        return None, info.error
    try:
        return database.get_collection(info.name).count(), None
    except Exception as error:
        return None, fault_of_one(error)


def run_drop(args: argparse.Namespace, target: Target) -> int:
    with opened(target, write=True) as database:
        database.drop_collection(args.collection)
    return _said(args, f"dropped {args.collection}", {"dropped": args.collection})


def run_rename(args: argparse.Namespace, target: Target) -> int:
    with opened(target, write=True) as database:
        database.rename_collection(args.collection, args.new_name)
    return _said(
        args,
        f"{args.collection} is now {args.new_name}",
        {"renamed": args.collection, "name": args.new_name},
    )


def run_alias(args: argparse.Namespace, target: Target) -> int:
    """Without a name: prints all. With a name and a collection: sets. With --drop: removes."""
    if args.alias is None and not args.drop:
        with opened(target) as database:
            aliases = database.list_aliases()
        if args.json:
            json_line(aliases)
        else:
            pairs(dict(sorted(aliases.items())))
        return EXIT_OK
    if args.alias is None or args.drop == (args.collection is not None):
        raise CommandFailed("name an alias, and a collection to point to or --drop", EXIT_USAGE)
    with opened(target, write=True) as database:
        if args.drop:
            database.drop_alias(args.alias)
            return _said(args, f"dropped {args.alias}", {"dropped": args.alias})
        database.set_alias(args.alias, args.collection)
    return _said(
        args,
        f"{args.alias} points to {args.collection}",
        {"alias": args.alias, "collection": args.collection},
    )


def _said(args: argparse.Namespace, text: str, values: dict[str, Any]) -> int:
    if args.json:
        json_line(values)
    else:
        print(text)
    return EXIT_OK


def run_stats(args: argparse.Namespace, target: Target) -> int:
    with opened(target) as database:
        stats = database.get_collection(args.collection).stats()
    if args.json:
        json_line(plain(stats))
        return EXIT_OK
    pairs(
        {
            "collection": stats.name,
            "records": stats.count,
            "rows ever written": stats.rows,
            "rows given back": stats.purged_rows,
            "sequence": stats.sequence,
            "durability": f"{stats.durability}, commit {stats.synced_sequence} is on the disk"
            if stats.durability
            else "as the process that writes was told",
            "on disk": size(stats.disk_bytes),
            "map used": f"{size(stats.map_used_bytes)} of {size(stats.map_limit_bytes)}",
        }
    )
    _print_index("index", stats.index)
    for name, index in stats.vectors.items():
        _print_index(f"index of {name}", index)
    for device in stats.devices:
        _print_device(device)
    for repair in stats.repairs:
        _print_repair(repair)
    if stats.fields:
        print("\nmetadata fields (rows that have them)")
        pairs({f"  {name}": count for name, count in sorted(stats.fields.items())})
    return EXIT_OK


def _print_index(title: str, index: Any) -> None:
    audit = index.audit
    wanted = f"{index.target_recall:g} wanted"
    print(f"\n{title}: {index.kind} on {index.device}, quantization {index.quantization}")
    values = {
        "  indexed rows": index.indexed_rows,
        "  rows searched exactly": index.tail_rows,
        "  dead rows": index.dead_rows,
        "  memory": size(index.memory_bytes),
        "  file": size(index.file_bytes),
        "  recall": f"{index.measured_recall:.4f} measured, {wanted}",
    }
    if index.device_bytes:
        values["  memory of GPUs"] = size(index.device_bytes)
    if index.built_at_sequence:
        values["  built"] = f"{index.age_s:,.0f} s ago, at sequence {index.built_at_sequence:,}"
    if audit.queries:
        values["  audited recall"] = (
            f"{audit.recall:.4f} ({audit.low:.4f} to {audit.high:.4f}) of {audit.queries:,} queries"
        )
    pairs(values)
    if index.device_note:
        print(f"  {index.device_note}")
    if index.building:
        print(f"  building: {index.build_progress:.0%}")
    if index.last_error:
        print(f"  the last build failed: {index.last_error}")
    if index.curve:
        points = [
            (one.setting, round(one.recall_at_10, 4), round(one.recall_at_100, 4),
             round(one.cost_us, 1)) for one in index.curve
        ]  # fmt: skip
        table(("  setting", "recall@10", "recall@100", "microseconds"), points)


def _print_device(device: Any) -> None:
    """One of the devices that all collections share."""
    if not device.card:
        print(
            f"\n{device.name}: {device.state}{f': {device.last_error}' * bool(device.last_error)}"
        )
        return
    print(f"\n{device.name}: {device.card}, {device.state}")
    used = f"{size(device.used_bytes)} of {size(device.budget_bytes)} that may be"
    pairs(
        {
            "  memory used": f"{used}, {size(device.total_bytes)} in all",
            "  placements": f"{device.placements}, {device.evictions:,} had to go for others",
            "  searches waiting": device.queued,
            "  queries": f"{device.queries:,} in {device.batches:,} batches",
            "  restarts": device.restarts,
        }
    )
    if device.last_error:
        print(f"  died last because: {device.last_error}")


def _print_repair(repair: Any) -> None:
    """What a repair of the file could not keep."""
    print(f"\nrepaired at {repair.repaired_at:%Y-%m-%d %H:%M:%S} UTC, commit {repair.sequence:,}")
    pairs(
        {
            "  records lost": repair.lost_records,
            "  earlier versions lost": repair.lost_versions,
            "  commits lost": repair.lost_commits,
            "  moments before it": "lost" if repair.history_dropped else "can be read",
            "  kept unverified": repair.unverified_records,
            "  kept, maybe deleted": repair.undecided_records,
            "  the file as it was": repair.quarantine,
        }
    )
    for doubt in repair.doubts:
        print(f"  {doubt}")
    for name in repair.lost:
        print(f"  lost {name}")


def run_compact(args: argparse.Namespace, target: Target) -> int:
    """Waits until the space of dead rows is given back, however long that takes."""
    with opened(target, write=True) as database:
        collection = database.get_collection(args.collection)
        done = collection.compact(wait=True, timeout_s=target.no_limit_s)
    text = (
        f"{done.purged_rows:,} rows given back, {size(done.bytes_before)} to "
        f"{size(done.bytes_after)} on disk"
    )
    return _said(args, text, plain(done))


def run_cancel_build(args: argparse.Namespace, target: Target) -> int:
    """Says whether there was a build; none is no failure. Of a folder this process is the only writer, so
    there is none."""
    with opened(target, write=True) as database:
        cancelled = database.get_collection(args.collection).cancel_build()
    text = "the build was cancelled" if cancelled else "no build was running"
    return _said(args, text, {"cancelled": cancelled})


def run_check(args: argparse.Namespace, target: Target) -> int:
    """Checks one collection, or all of them; EXIT_PROBLEMS when anything is wrong."""
    if args.repair:
        return run_repair(args, target)
    ok, damaged, told = True, list[str](), dict[str, dict[str, Any]]()
    with opened(target) as database:
        names = (
            [args.collection]
            if args.collection
            else [info.name for info in database.list_collections()]
        )
        for name in names:
            try:
                report = database.get_collection(name).check()
            except Exception as error:
                if args.collection:
                    raise
                fault, ok = fault_of_one(error), False  # the others are checked all the same
                damaged.append(name)
                if args.json:
                    told[name] = {"ok": False, "records": None, "problems": [fault]}
                else:
                    print(f"{name}: cannot be opened\n  {fault}")
                continue
            if not report.ok:
                ok = False
                damaged.append(name)
            if args.json:
                told[name] = plain(report)
                continue
            verdict = "ok" if report.ok else f"{len(report.problems)} problems"
            print(f"{name}: {report.records:,} records, {verdict}")
            for problem in report.problems:
                print(f"  {problem}")
    for name in damaged:
        lost = [] if target.data is None else _lost(target.data, name)
        if lost and args.json:
            told[name]["losses"] = lost
        elif lost:
            print("\n  ".join([f"{name}, what a repair would find:", *lost]))
    for name, of_it in told.items():
        json_line({"collection": name, **of_it})
    return EXIT_OK if ok else EXIT_PROBLEMS


def _lost(folder: Path, name: str) -> list[str]:
    """What cannot be read of a collection in a folder whose pages are damaged; nothing while somebody has it open for writing."""
    from vecdb.errors import VecdbError
    from vecdb.repairing import lost_in

    try:
        return lost_in(folder, name)
    except (VecdbError, OSError):
        return []
