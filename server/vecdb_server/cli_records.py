"""The commands that read and delete records: get, query, delete, count."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np

from .cli_files import load_vectors, number_matrix
from .cli_output import json_line, pairs, plain, print_record, record_json
from .cli_target import EXIT_ERROR, EXIT_OK, EXIT_USAGE, CommandFailed, Target, opened

_PAGE = 1_000


def _include(args: argparse.Namespace) -> tuple[str, ...]:
    return tuple(name.strip() for name in args.include.split(",") if name.strip())


def run_get(args: argparse.Namespace, target: Target) -> int:
    """Prints records by ids, or the first `limit` that match, in order."""
    if args.ids and (args.order_by or args.cursor or args.limit is not None):
        raise CommandFailed("ids go without --order-by, --limit and --cursor", EXIT_USAGE)
    if args.limit is not None and args.limit < 1:
        raise CommandFailed("--limit takes 1 or more", EXIT_USAGE)
    with opened(target) as database:
        collection = database.get_collection(args.collection)
        if args.ids:
            found = collection.get(args.ids, filter=args.filter, include=_include(args))
            _print_records(found, args)
            missing = sorted(set(args.ids) - set(found.ids))
            if missing and args.filter is None:
                raise CommandFailed(f"not stored: {', '.join(missing)}", EXIT_ERROR)
            return EXIT_OK
        left = 100 if args.limit is None else args.limit
        cursor = args.cursor
        while left > 0:
            page = collection.get(
                filter=args.filter,
                order_by=args.order_by,
                limit=min(left, _PAGE),
                cursor=cursor,
                include=_include(args),
            )
            _print_records(page, args)
            left -= len(page)
            cursor = page.cursor
            if cursor is None:
                return EXIT_OK
    if cursor is not None:
        print(f"vecdb: there is more; go on with --cursor '{cursor}'", file=sys.stderr)
    return EXIT_OK


def _print_records(records: Any, args: argparse.Namespace) -> None:
    for record in records:
        if args.json:
            json_line(record_json(record))
        else:
            print_record(record)


def run_query(args: argparse.Namespace, target: Target) -> int:
    """Prints the nearest records to each query; as JSON, one line a query."""
    vectors = _query_vectors(args)
    given = (args.id, vectors, args.positive)
    if sum(one is not None for one in given) != 1:
        raise CommandFailed("name one of --vector, --vectors and --id, or --positive", EXIT_USAGE)
    with opened(target) as database:
        result = database.get_collection(args.collection).query(
            vectors,
            ids=args.id,
            positive=_examples("--positive", args.positive),
            negative=_examples("--negative", args.negative),
            vector_name=args.vector_name,
            k=args.k,
            filter=args.filter,
            exact=args.exact,
            max_distance=args.max_distance,
            target_recall=args.target_recall,
            group_by=args.group_by,
            group_size=args.group_size,
            mmr_lambda=args.mmr,
            mmr_candidates=args.mmr_candidates,
            explain=args.explain,
            include=_include(args),
        )
    for query in range(len(result)):
        hits = result.hits(query)
        if args.json:
            line = {
                "query": query,
                "sequence": result.sequence,
                "hits": list(map(record_json, hits)),
            }
            if result.explain is not None:
                line["explain"] = plain(result.explain)
            json_line(line)
            continue
        if len(result) > 1 or not hits:
            print(f"query {query}: {len(hits)} hits")
        for rank, hit in enumerate(hits, 1):
            group = "" if hit.group is None else f"{hit.group}  "
            print_record(hit, f"{rank:>4}  {hit.distance:8.4f}  {group}")
    if result.explain is not None and not args.json:
        _print_explain(result.explain)
    return EXIT_OK


def _examples(flag: str, given: list[str] | None) -> list[Any] | None:
    """Ids as they are, JSON lists as vectors."""
    if given is None:
        return None
    found: list[Any] = []
    for text in given:
        if not text.startswith("["):
            found.append(text)
            continue
        try:
            found.append(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise CommandFailed(
                f"{flag} takes an id or a JSON list of numbers: {error}", EXIT_USAGE
            ) from error
    return found


def _print_explain(explain: Any) -> None:
    values = plain(explain)
    times = values.pop("times_us")
    print("\nexplain")
    pairs({f"  {name.replace('_', ' ')}": value for name, value in values.items()})
    pairs({f"  {step} us": round(time, 1) for step, time in times.items()})


def _query_vectors(args: argparse.Namespace) -> Any:
    if args.vector is not None and args.vectors is not None:
        raise CommandFailed("name one of --vector, --vectors and --id", EXIT_USAGE)
    if args.row is not None and args.vectors is None:
        raise CommandFailed("--row chooses a row of --vectors", EXIT_USAGE)
    if args.vector is not None:
        try:
            # Without a standard input there is nothing to read.
            piped = args.vector == "-" and sys.stdin is not None
            text = sys.stdin.read() if piped else args.vector
            matrix = number_matrix(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise CommandFailed(
                f"--vector takes a JSON list of numbers: {error}", EXIT_USAGE
            ) from error
        if matrix is None or matrix.ndim not in (1, 2):
            raise CommandFailed(
                f"--vector takes a JSON list of numbers, given {text.strip()[:60]}", EXIT_USAGE
            )
        return matrix
    if args.vectors is None:
        return None
    matrix = load_vectors(args.vectors)
    if args.row is None:
        return np.ascontiguousarray(matrix)
    if not 0 <= args.row < len(matrix):
        raise CommandFailed(f"--row must be from 0 to {len(matrix) - 1}", EXIT_USAGE)
    return np.ascontiguousarray(matrix[args.row])


def run_delete(args: argparse.Namespace, target: Target) -> int:
    """Deletes by ids, by filter, or those of the ids that match the filter."""
    if not args.ids and args.filter is None:
        raise CommandFailed("name ids, or a --filter ({} for everything)", EXIT_USAGE)
    with opened(target, write=True) as database:
        collection = database.get_collection(args.collection)
        result = collection.delete(args.ids or None, filter=args.filter)
    if args.json:
        json_line({"count": result.count, "sequence": result.sequence})
    else:
        print(f"{result.count:,} deleted")
    return EXIT_OK


def run_count(args: argparse.Namespace, target: Target) -> int:
    with opened(target) as database:
        count = database.get_collection(args.collection).count(args.filter)
    if args.json:
        json_line({"count": count})
    else:
        print(count)
    return EXIT_OK
