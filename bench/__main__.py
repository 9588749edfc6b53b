"""`python -m bench NAME`: runs one measurement."""

from __future__ import annotations

import sys

from . import first, index

MEASUREMENTS = {"first": first.main, "index": index.main}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in MEASUREMENTS:
        print(f"usage: python -m bench {{{','.join(MEASUREMENTS)}}} [--help]", file=sys.stderr)
        return 2
    return MEASUREMENTS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
