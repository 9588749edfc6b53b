"""The command `keys`: the file of API keys that a server reads. Needs no server, and no engine that runs."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from .cli_target import EXIT_OK, EXIT_USAGE, CommandFailed, Target

_VERBS = ("add", "list", "rotate", "revoke")
DEFAULT_FILE = "vecdb-keys.json"
_DAY_S = 86_400.0
_HOUR_S = 3_600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("verb", choices=_VERBS)
    parser.add_argument("id", nargs="?", help="id of the key, for rotate and revoke")
    parser.add_argument(
        "--keys-file",
        metavar="FILE",
        help=f"the file (VECDB_KEYS_FILE); default {DEFAULT_FILE}",
    )
    parser.add_argument(
        "--grant",
        action="append",
        metavar="ROLE[:PATTERN]",
        help="read, write or admin, on collections whose names match, such as read:docs-*; may be"
        " repeated; default for add: read, on all",
    )
    parser.add_argument("--note", default="", help="what the key is for")
    parser.add_argument(
        "--days", type=float, help="the secret ends after so many days; default: never"
    )
    parser.add_argument(
        "--overlap-hours",
        type=float,
        default=24.0,
        metavar="H",
        help="how long the old secret is good after rotate; default 24",
    )
    parser.add_argument("--json", action="store_true", help="for machines: one JSON object a line")


def run_keys(args: argparse.Namespace, _: Target) -> int:
    from vecdb.errors import InvalidArgument, NotFound

    path = Path(args.keys_file or args.environ.get("VECDB_KEYS_FILE") or DEFAULT_FILE)
    needs_id = args.verb in ("rotate", "revoke")
    if needs_id != bool(args.id):
        what = "needs the id of a key" if needs_id else "takes no id"
        raise CommandFailed(f"keys {args.verb} {what}", EXIT_USAGE)
    try:
        return _run(args, path)
    except NotFound as error:
        raise CommandFailed(error.message) from error
    except InvalidArgument as error:
        raise CommandFailed(error.message, EXIT_USAGE) from error


def _run(args: argparse.Namespace, path: Path) -> int:
    from . import keys

    now_s = time.time()
    if args.verb == "list":
        for key in keys.load(path).values():
            _print(_told(key, now_s), as_json=args.json)
        return EXIT_OK
    if args.verb == "revoke":
        _print(_told(keys.revoke(path, args.id, now_s), now_s), as_json=args.json)
        return EXIT_OK
    expires_s = None if args.days is None else now_s + _positive("--days", args.days) * _DAY_S
    if args.verb == "add":
        grants = tuple(keys.parse_grant(text) for text in args.grant or ["read"])
        key, text = keys.add(path, grants, args.note, now_s, expires_s)
    else:
        overlap_s = _positive("--overlap-hours", args.overlap_hours, zero=True) * _HOUR_S
        key, text = keys.rotate(path, args.id, now_s, overlap_s, expires_s)
    _print({**_told(key, now_s), "key": text}, as_json=args.json)
    return EXIT_OK


def _positive(flag: str, value: float, *, zero: bool = False) -> float:
    if not (0 < value <= 36_500 or (zero and value == 0)):
        raise CommandFailed(f"{flag} must be above 0 and at most 36,500, given {value}", EXIT_USAGE)
    return value


def _told(key: Any, now_s: float) -> dict[str, Any]:
    from .keys import moment

    return {
        "id": key.id,
        "state": key.state(now_s),
        "grants": [f"{grant.role}:{grant.pattern}" for grant in key.grants],
        "created_at": moment(key.created_s),
        "expires_at": moment(key.expires_s()),
        "note": key.note,
    }


def _print(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(told))
        return
    grants = " ".join(told["grants"])
    until = told["expires_at"] or "no end"
    print(f"{told['id']}  {told['state']}  {grants}  until {until}  {told['note']}".rstrip())
    if "key" in told:
        print(f"key: {told['key']}")
        print("It is shown this once; the file has its hash only.")
