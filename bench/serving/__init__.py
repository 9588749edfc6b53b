"""What the network costs, measured on one machine: single queries, where their time goes, streams of
inserts, reading processes.

    python -m bench serving [queries | where | ingest | readers] [--help]

Without a word: queries.
"""

from __future__ import annotations

import importlib

from .queries import KINDS

__all__ = ["KINDS", "PARTS", "main"]

PARTS = ("queries", "where", "ingest", "readers")


def main(arguments: list[str]) -> int:
    part, rest = (
        (arguments[0], arguments[1:])
        if arguments and arguments[0] in PARTS
        else (PARTS[0], arguments)
    )
    code: int = importlib.import_module(f".{part}", __package__).main(rest)
    return code
