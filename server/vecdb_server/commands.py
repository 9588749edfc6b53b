"""From words on the command line to a command that runs, and from its failure to an exit code."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

from .cli import DEFAULT_SERVER, parse
from .cli_target import (
    EXIT_BROKEN_PIPE,
    EXIT_ERROR,
    EXIT_OK,
    EXIT_USAGE,
    CommandFailed,
    Target,
)


def run(argv: list[str]) -> int:
    """Runs one command; the exit code. KeyboardInterrupt passes."""
    parser, args = parse(argv, os.environ)
    if args.version:
        print(f"vecdb {version('vecdb-server')}")
        return EXIT_OK
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    target = Target(
        address=getattr(args, "server", None) or os.environ.get("VECDB_SERVER") or DEFAULT_SERVER,
        data=Path(args.data) if getattr(args, "data", None) else None,
        timeout_s=getattr(args, "timeout_s", 30.0),
        connecting={
            "api_key_file": getattr(args, "api_key_file", None),
            "tls": getattr(args, "tls", False),
            "tls_ca": getattr(args, "tls_ca", None) or os.environ.get("VECDB_TLS_CA"),
            "tls_cert": getattr(args, "tls_cert", None),
            "tls_key": getattr(args, "tls_key", None),
        },
    )
    try:
        code: int = args.run(args, target)
        if sys.stdout is not None:  # None: closed by whoever started us
            sys.stdout.flush()
    except CommandFailed as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        return _fail(str(error), EXIT_ERROR)
    return code


def _fail(message: str, exit_code: int) -> int:
    print(f"vecdb: {message}", file=sys.stderr)
    return exit_code
