"""The command `downgrade`: back to the format of the version before, or giving that way up."""

from __future__ import annotations

import argparse

from .cli_output import json_line, plain, size
from .cli_target import EXIT_FOLDER, EXIT_OK, EXIT_USAGE, CommandFailed, Target, failed


def run_downgrade(args: argparse.Namespace, target: Target) -> int:
    """Works on a folder that no process has open for writing."""
    from vecdb.downgrading import discard_kept, downgrade
    from vecdb.errors import VecdbError

    if target.data is None:
        raise CommandFailed("downgrade works on a folder: give --data", EXIT_USAGE)
    try:
        if args.discard:
            freed = discard_kept(target.data)
            print(f"{size(freed)} of kept files removed; there is no way back now")
            return EXIT_OK
        done = downgrade(target.data)
    except VecdbError as error:
        raise failed(error) from error
    except OSError as error:
        raise CommandFailed(f"cannot use {target.data}: {error}", EXIT_FOLDER) from error
    for one in done:
        if args.json:
            json_line(plain(one))
        elif one.format == one.format_before:
            print(f"{one.collection}: format {one.format}, nothing to go back to")
        else:
            lost = one.sequence_before - one.sequence
            print(
                f"{one.collection}: format {one.format_before} -> {one.format}, at commit {one.sequence}"
                + (f"; {lost} later commits are gone" if lost else "; nothing is lost")
            )
    return EXIT_OK
