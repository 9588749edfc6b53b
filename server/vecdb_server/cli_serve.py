"""The command `serve`: settings from flags, environment and file, then the server until it is told
to stop.

The engine and gRPC are imported when the command runs: the others are quicker without.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .cli_target import EXIT_USAGE, CommandFailed, Target

_METAVARS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}
# Read by the other commands and by tests, so not settings that somebody misspelt.
_OTHER_VARIABLES = {"VECDB_SERVER", "VECDB_API_KEY", "VECDB_TLS_CA", "VECDB_FAILPOINTS"}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """One flag for each row of the table of settings."""
    from .settings import ENV_PREFIX, SERVER, SETTINGS

    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"TOML file of settings ({ENV_PREFIX}CONFIG)"
    )
    server = parser.add_argument_group("settings of the server")
    engine = parser.add_argument_group("settings of the engine")
    for row in SETTINGS:
        (server if row in SERVER else engine).add_argument(
            "--" + row.name.replace("_", "-"),
            # Text: the table parses it, as it parses environment variables.
            dest=f"setting_{row.name}",
            metavar=_METAVARS[row.kind],
            # A percent sign means a value to argparse.
            help=f"{row.doc} Default {row.default}; {ENV_PREFIX}{row.name.upper()}"
            f"{'; taken up on SIGHUP' * row.reload}".replace("%", "%%"),
        )


def run_serve(args: argparse.Namespace, _: Target) -> int:
    # Lines of gRPC's C++ core are in no log format of ours; what they say reaches us as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from vecdb.errors import InvalidSetting
    from vecdb.settings import SettingValue

    from .serving import serve
    from .settings import ENV_PREFIX, SETTINGS, load, unknown_variables

    environ = args.environ
    given = args.config or environ.get(ENV_PREFIX + "CONFIG")
    flags = {row.name: getattr(args, f"setting_{row.name}") for row in SETTINGS}

    def read() -> dict[str, SettingValue]:
        return load(flags, environ, Path(given) if given else None)

    try:
        settings = read()
    except InvalidSetting as error:
        raise CommandFailed(error.message, EXIT_USAGE) from error
    for name in unknown_variables(environ):
        if name not in _OTHER_VARIABLES:
            print(f"vecdb: environment variable {name} is no setting", file=sys.stderr)
    return serve(settings, read)
