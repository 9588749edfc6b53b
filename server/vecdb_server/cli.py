"""The command line: one parser, every command with its help, an example, and the function it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from . import (
    cli_backups,
    cli_collections,
    cli_downgrade,
    cli_health,
    cli_keys,
    cli_records,
    cli_serve,
    cli_top,
    cli_transfer,
)
from .cli_target import EXIT_CODES, Target

Run = Callable[[argparse.Namespace, Target], int]

DEFAULT_SERVER = "127.0.0.1:7700"

_DESCRIPTION = """\
A vector database on one machine. `vecdb serve` runs a server; the other commands talk to it, or
work on a data folder themselves with --data."""

_EPILOG = f"""\
The server is at {DEFAULT_SERVER} unless --server or the environment variable VECDB_SERVER says
otherwise. Each command explains itself: vecdb COMMAND --help

{EXIT_CODES}"""

_PARTS = "vector,metadata,document,content,uri,named_vectors"
_FILTER_HELP = 'JSON filter, such as \'{"pos": "noun", "year": {"$gte": 2020}}\''


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def build_parser(named: Container[str]) -> argparse.ArgumentParser:
    """The parser. Of serve, create and import it has the flags only where they are `named`: these need
    tables of the engine or of the client, and importing either doubles the time of a short command."""
    parser = argparse.ArgumentParser(
        prog="vecdb", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_Help
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def command(name: str, run: Run, text: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n{example}",
            formatter_class=_Help,
        )
        added.set_defaults(run=run)
        return added

    serve = commands.add_parser(
        "serve",
        help="run the server until SIGTERM or Ctrl-C",
        description="Run the server until SIGTERM or Ctrl-C; then finish what is running and stop.",
        epilog="Each setting is taken from its flag, else from its environment variable, else from"
        " the TOML file, else from its default.\n\nexample:\n"
        "  vecdb serve --data ./data --port 7700",
        formatter_class=_Help,
    )
    serve.set_defaults(run=cli_serve.run_serve)
    if "serve" in named:
        cli_serve.add_settings(serve)

    create = command(
        "create",
        cli_collections.run_create,
        "make an empty collection",
        "  vecdb create docs --dimension 384 --metric cosine\n"
        "  vecdb create pictures --dimension 512 --vector caption:384 --vector print:64:hamming:binary",
    )
    create.add_argument("collection")
    create.add_argument(
        "--dimension", type=int, required=True, help="numbers a vector; for storage binary, bits"
    )
    create.add_argument(
        "--exist-ok", action="store_true", help="fine if it exists with these settings"
    )
    if "create" in named:
        _add_creation(create)

    list_ = command("list", cli_collections.run_list, "list the collections", "  vecdb list --json")
    drop = command(
        "drop",
        cli_collections.run_drop,
        "remove a collection with all its records",
        "  vecdb drop docs",
    )
    drop.add_argument("collection")
    rename = command(
        "rename",
        cli_collections.run_rename,
        "give a collection another name",
        "  vecdb rename docs docs-2025",
    )
    rename.add_argument("collection")
    rename.add_argument("new_name")
    alias = command(
        "alias",
        cli_collections.run_alias,
        "list, set or drop aliases",
        "  vecdb alias live docs-2025     set it, or point it elsewhere\n"
        "  vecdb alias live --drop        remove it\n"
        "  vecdb alias                    list all",
    )
    alias.add_argument("alias", nargs="?")
    alias.add_argument("collection", nargs="?")
    alias.add_argument("--drop", action="store_true", help="remove the alias")

    import_ = _add_import(command, with_creation="import" in named)
    export = _add_export(command)
    query = _add_query(command)
    get = _add_get(command)

    delete = command(
        "delete",
        cli_records.run_delete,
        "delete records by ids or by filter",
        '  vecdb delete docs a1 a2\n  vecdb delete docs --filter \'{"year": {"$lt": 2000}}\'',
    )
    delete.add_argument("collection")
    delete.add_argument("ids", nargs="*", metavar="id")
    delete.add_argument("--filter", help=_FILTER_HELP)
    count = command(
        "count",
        cli_records.run_count,
        "count records, all or those that match a filter",
        '  vecdb count docs --filter \'{"pos": "noun"}\'',
    )
    count.add_argument("collection")
    count.add_argument("--filter", help=_FILTER_HELP)
    stats = command(
        "stats",
        cli_collections.run_stats,
        "show sizes, fields and the state of the index",
        "  vecdb stats docs",
    )
    stats.add_argument("collection")
    check = command(
        "check",
        cli_collections.run_check,
        "compare all stored structures with each other",
        "  vecdb check            every collection\n  vecdb check docs\n"
        "  vecdb check --data ./data --repair   damaged files are made again, losses are named",
    )
    check.add_argument("collection", nargs="?")
    check.add_argument(
        "--repair",
        action="store_true",
        help="make damaged files again from what can be read of them (a folder that nobody serves)",
    )

    compact = command(
        "compact",
        cli_collections.run_compact,
        "give the space of deleted and replaced records back",
        "  vecdb compact docs",
    )
    compact.add_argument("collection")

    cancel_build = command(
        "cancel-build",
        cli_collections.run_cancel_build,
        "stop the index builds that a server runs for a collection",
        "  vecdb cancel-build docs",
    )
    cancel_build.add_argument("collection")

    top, health = cli_top.add_top(command), cli_health.add_health(command)
    cli_backups.add_commands(command, _add_target, _add_connection)
    downgrade = command(
        "downgrade",
        cli_downgrade.run_downgrade,
        "put the files back that an upgrade of the format has kept, for the version before",
        "  vecdb downgrade --data ./data             what was written since the upgrade is lost\n"
        "  vecdb downgrade --data ./data --discard   removes the kept files: no way back then",
    )
    downgrade.add_argument("--discard", action="store_true", help="remove the kept files instead")

    keys = command(
        "keys",
        cli_keys.run_keys,
        "add, list, rotate and revoke the API keys of a server",
        "  vecdb keys add --grant read:docs-* --grant write:docs-new --note 'web shop' --days 365\n"
        "  vecdb keys list\n"
        "  vecdb keys rotate k3v8abcd --overlap-hours 24\n"
        "  vecdb keys revoke k3v8abcd",
    )
    cli_keys.add_arguments(keys)

    for one in (create, list_, drop, rename, alias, import_, export, query, get, delete, count,
                stats, check, compact, cancel_build, downgrade, top, health):  # fmt: skip
        _add_target(one)
    return parser


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where the database is")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--server", metavar="HOST:PORT", help=f"a server; default {DEFAULT_SERVER}")
    where.add_argument(
        "--data", metavar="FOLDER", type=Path, help="a data folder, without a server"
    )
    _add_connection(group)
    parser.add_argument("--json", action="store_true", help="for machines: one JSON object a line")


def _add_connection(group: Any) -> None:
    """How a server is reached."""
    group.add_argument(
        "--timeout-s",
        type=float,
        default=30.0,
        help="seconds a call to the server may take; default 30",
    )
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="file with the API key; else it is that of the variable VECDB_API_KEY",
    )
    group.add_argument("--tls", action="store_true", help="encrypt, with the usual authorities")
    group.add_argument(
        "--tls-ca", metavar="FILE", help="PEM of the server's authority (VECDB_TLS_CA); encrypts"
    )
    group.add_argument("--tls-cert", metavar="FILE", help="PEM of the client's own certificate")
    group.add_argument("--tls-key", metavar="FILE", help="PEM of its key")


def _add_creation(parser: argparse.ArgumentParser) -> None:
    from vecdb_client import types

    parser.add_argument(
        "--metric", choices=types.METRICS, help="default cosine; storage binary needs hamming"
    )
    parser.add_argument("--storage", choices=types.STORAGES, help="default float32")
    parser.add_argument("--index", choices=types.INDEX_KINDS, help="default auto")
    parser.add_argument(
        "--quantization",
        choices=types.QUANTIZATIONS,
        help="how the index codes vectors; default auto",
    )
    parser.add_argument("--target-recall", type=float, help="0.5 to 1.0; default 0.95")
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        help="what searches it: auto, cpu, gpu, or GPUs by number, as gpu:0,1; default auto",
    )
    parser.add_argument(
        "--vector",
        dest="fields",
        action="append",
        type=_vector_field,
        metavar="NAME:DIM[:METRIC[:STORAGE]]",
        help="a further, named vector field; may be repeated",
    )
    parser.add_argument("--schema", help='JSON: {"year": "int", "tags": "string[]"}')
    parser.add_argument("--description", help="free text")


def _vector_field(text: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of a named vector field."""
    from vecdb_client.types import METRICS, STORAGES

    name, *given = text.split(":")
    if not name or not 1 <= len(given) <= 3 or not given[0].isdecimal():
        raise argparse.ArgumentTypeError(
            f"expected NAME:DIM[:METRIC[:STORAGE]], such as title:384:cosine, given {text!r}"
        )
    settings: dict[str, Any] = {"dimension": int(given[0])}
    for what, choices, value in zip(
        ("metric", "storage"), (METRICS, STORAGES), given[1:], strict=False
    ):
        if value not in choices:
            raise argparse.ArgumentTypeError(
                f"{what} of {name} must be one of {', '.join(choices)}, given {value!r}"
            )
        settings[what] = value
    return name, settings


def _add_import(
    command: Callable[..., argparse.ArgumentParser], *, with_creation: bool
) -> argparse.ArgumentParser:
    parser = command(
        "import",
        cli_transfer.run_import,
        "write the records of a file into a collection",
        "  vecdb import docs docs.jsonl.gz --create\n"
        "  vecdb import words rows.jsonl.gz --vectors vectors.npy --document-field text \\\n"
        "      --metadata-fields pos,category --create --metric cosine",
    )
    parser.add_argument("collection")
    parser.add_argument("file", help=".jsonl, .jsonl.gz, .npz, or - for JSON lines from stdin")
    parser.add_argument(
        "--vectors", type=Path, metavar="FILE", help=".npy (rows, d), one row a line"
    )
    for name in ("id", "vector", "document", "uri"):
        parser.add_argument(
            f"--{name}-field",
            default=name,
            metavar="NAME",
            help=f"field of the {name}; default {name}",
        )
    parser.add_argument(
        "--metadata-fields",
        metavar="A,B",
        help="fields that become metadata; default: the object in `metadata`, and every field that"
        " is nothing else",
    )
    parser.add_argument("--upsert", action="store_true", help="replace records that are stored")
    parser.add_argument(
        "--batch-size", type=int, default=1_000, metavar="N",
        help="rows a commit, where a message of a server has room for them; default 1000",
    )  # fmt: skip
    parser.add_argument(
        "--skip", type=int, default=0, metavar="N", help="pass over the first N rows"
    )
    parser.add_argument(
        "--build-index", action="store_true", help="wait until all rows are indexed"
    )
    creation = parser.add_argument_group("a collection made on the way")
    creation.add_argument(
        "--create",
        action="store_true",
        help="make the collection if it does not exist; dimensions, also those of named vectors in"
        " the first batch, come from the file",
    )
    if with_creation:
        _add_creation(parser)
    return parser


def _add_export(command: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = command(
        "export",
        cli_transfer.run_export,
        "write the records of a collection into a file, which import reads",
        "  vecdb export docs docs.jsonl.gz\n"
        "  vecdb export docs docs.npy           and docs.jsonl.gz beside it",
    )
    parser.add_argument("collection")
    parser.add_argument(
        "file", help=".jsonl, .jsonl.gz, .npz, .npy with .jsonl.gz, or - for JSON lines on stdout"
    )
    parser.add_argument("--filter", help=_FILTER_HELP)
    parser.add_argument(
        "--include",
        default=_PARTS,
        metavar="A,B",
        help=f"parts to write; default all: {_PARTS}",
    )
    return parser


def _add_query(command: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = command(
        "query",
        cli_records.run_query,
        "find the nearest records",
        '  vecdb query docs --id a1 --k 5 --filter \'{"pos": "noun"}\'\n'
        "  vecdb query docs --vectors queries.npy --row 0 --json",
    )
    parser.add_argument("collection")
    parser.add_argument(
        "--vector", metavar="JSON", help="'[0.1, 0.2, …]', or - to read it from stdin"
    )
    parser.add_argument("--vectors", type=Path, metavar="FILE", help=".npy with one query a row")
    parser.add_argument("--row", type=int, metavar="I", help="only this row of --vectors, from 0")
    parser.add_argument(
        "--id", action="append", help="the vector of a stored record; may be repeated"
    )
    for name, text in (
        ("positive", "search near this; an id or a JSON list of numbers; may be repeated"),
        ("negative", "and away from this, likewise; with --positive"),
    ):
        parser.add_argument(f"--{name}", action="append", metavar="ID|JSON", help=text)
    parser.add_argument("--vector-name", metavar="NAME", help="search this named vector field")
    parser.add_argument("--k", type=int, help="answers a query, or groups; default 10")
    parser.add_argument("--filter", help=_FILTER_HELP)
    parser.add_argument("--exact", action="store_true", help="compare with every vector")
    parser.add_argument("--max-distance", type=float, help="leave out what is farther")
    parser.add_argument("--target-recall", type=float, help="0.5 to 1.0; default: the collection's")
    parser.add_argument("--group-by", metavar="FIELD", help="the best records of each group")
    parser.add_argument("--group-size", type=int, metavar="N", help="records a group; default 1")
    parser.add_argument(
        "--mmr",
        type=float,
        metavar="LAMBDA",
        help="choose unlike answers: 1 is the plain order, 0 looks at unlikeness only",
    )
    parser.add_argument(
        "--mmr-candidates",
        type=int,
        metavar="N",
        help="nearest records that --mmr chooses from; default 4 k, at least 50",
    )
    parser.add_argument("--explain", action="store_true", help="say how the query was answered")
    _add_include(parser)
    return parser


def _add_get(command: Callable[..., argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = command(
        "get",
        cli_records.run_get,
        "read records by ids, or those that match a filter",
        "  vecdb get docs a1 a2\n"
        '  vecdb get docs --filter \'{"pos": "noun"}\' --order-by=-year --limit 20',
    )
    parser.add_argument("collection")
    parser.add_argument("ids", nargs="*", metavar="id")
    parser.add_argument("--filter", help=_FILTER_HELP)
    parser.add_argument("--order-by", metavar="FIELD", help="field or id; -FIELD for descending")
    parser.add_argument("--limit", type=int, metavar="N", help="records at most; default 100")
    parser.add_argument("--cursor", help="where the command before stopped")
    _add_include(parser)
    return parser


def _add_include(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--include",
        default="metadata,document",
        metavar="A,B",
        help=f"of {_PARTS.replace(',', ', ')}; default metadata,document",
    )


def parse(
    argv: list[str], environ: Mapping[str, str]
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser, for its help, and what it made of `argv`; `environ` travels with it."""
    parser = build_parser(argv)
    return parser, parser.parse_args(argv, argparse.Namespace(environ=environ))
