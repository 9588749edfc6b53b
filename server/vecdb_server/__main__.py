"""The command `vecdb`. The only place that reads arguments and environment."""

from __future__ import annotations

import sys

EXIT_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Runs one command; the exit code. Messages about failures go to stderr, one line each."""
    try:
        # Here, so that Ctrl-C while modules are loaded is an interruption like any other.
        from .commands import run

        return run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("vecdb: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
