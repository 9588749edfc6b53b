"""`python -m bench report FILE...`: a page and plots out of what `python -m bench run` has written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..datasets import ROOT
from . import drawings, readme
from .lines import BadRun, read
from .page import page

__all__ = ["BadRun", "main", "page", "read"]


def main(argv: Sequence[str]) -> int:
    """Writes <same name>.md and plots beside each file; 2 if one is no run."""
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON lines of a run")
    parser.add_argument(
        "--readme",
        nargs="?",
        type=Path,
        const=ROOT / "README.md",
        metavar="README.md",
        help="also put the table and plots of the one FILE between README's markers",
    )
    args = parser.parse_args(argv)
    if args.readme is not None and len(args.files) != 1:
        parser.error("--readme shows one run: give one FILE")
    try:
        for path in args.files:
            run = read(path)
            plots = drawings.write(run, path.parent, path.stem)
            if not plots:
                print(
                    f"{path.name}: no plots; matplotlib is not installed, or there is nothing to draw"
                )
            made = path.with_suffix(".md")
            made.write_text(page(run, plots), encoding="utf-8")
            print(made)
            if args.readme is not None:
                readme.rewrite(args.readme, run, path)
                print(args.readme)
    except BadRun as error:
        print(f"python -m bench report: {error}", file=sys.stderr)
        return 2
    return 0
