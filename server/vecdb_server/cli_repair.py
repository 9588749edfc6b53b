"""The command `check --repair`: damaged files are made again, and what is lost is named."""

from __future__ import annotations

import argparse

from .cli_output import json_line, plain
from .cli_target import (
    EXIT_FOLDER,
    EXIT_OK,
    EXIT_PROBLEMS,
    EXIT_USAGE,
    CommandFailed,
    Target,
    failed,
)


def run_repair(args: argparse.Namespace, target: Target) -> int:
    """Works on a folder that no process has open for writing; EXIT_PROBLEMS when something could not be
    repaired or was lost."""
    from vecdb.errors import VecdbError
    from vecdb.repairing import check

    if target.data is None or args.collection:
        raise CommandFailed("--repair works on a whole folder: give --data and no name", EXIT_USAGE)
    try:
        checked = check(target.data, repair=True)
    except VecdbError as error:
        raise failed(error) from error
    except OSError as error:
        raise CommandFailed(f"cannot use {target.data}: {error}", EXIT_FOLDER) from error
    ok = True
    for one in checked:
        made = one.repair
        # A catalog that was made anew may lack names, or have old ones.
        kept = bool(one.collection) if made is None else made.whole
        ok &= one.ok or (one.repaired and kept)
        if args.json:
            json_line(plain(one))
            continue
        verdict = "ok" if one.ok else "repaired" if one.repaired else "NOT repaired"
        print(f"{one.collection or 'catalog'}: {verdict}")
        for sentence in (*one.problems, *one.done):
            print(f"  {sentence}")
        if made is not None and not made.whole:
            print(
                f"  lost: {len(made.lost) + made.lost_unknown:,} records, {made.lost_versions:,} earlier versions, "
                f"{made.lost_commits} commits{', all moments before now' * made.history_dropped}; unverified {len(made.unverified):,}, undecided {len(made.undecided):,}; "
                f"the old file, and what is left of each row, are in {made.quarantine}"
            )
            for doubt in made.doubts:
                print(f"  {doubt}")
            for name in made.lost:
                print(f"  lost {name}")
    return EXIT_OK if ok else EXIT_PROBLEMS
