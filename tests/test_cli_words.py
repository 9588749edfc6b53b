"""What the command line says of an error names its own commands and flags, not methods and arguments of Python."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from authority import Authority
from conftest import Run, StartServer
from test_house import ROOT

from vecdb_server import __main__ as command_line
from vecdb_server import cli_words
from vecdb_server.cli_words import in_cli_words

VECTOR = ["--vector", "[1, 2, 3, 4]"]
SAID = [
    (["count", "nobody"], "no collection 'nobody'; `vecdb list` shows those there are"),
    (["alias", "--drop", "nobody"], "no alias 'nobody'; `vecdb alias` shows those there are"),
    (["create", "docs", "--dimension", "4"], "drop that first, or give --exist-ok"),
    (["query", "docs", *VECTOR, "--target-recall", "3"], "--target-recall must be from 0.5"),
    (["query", "docs", *VECTOR, "--group-size", "3"], "hits a group has; give --group-by with it"),
    (["query", "docs", *VECTOR, "--mmr-candidates", "3"], "--mmr-candidates says what --mmr"),
    (["query", "docs", *VECTOR, "--max-distance", "nan"], "--max-distance must be a number"),
]


@pytest.mark.parametrize(("words", "expected"), SAID, ids=[" ".join(words) for words, _ in SAID])
def test_errors_name_flags_and_commands(run: Run, words: list[str], expected: str) -> None:
    """Those of a folder and those that a server sends."""
    assert run("create", "docs", "--dimension", "4").code == 0
    done = run(*words)
    assert (done.code, done.out) == (1, "")
    assert expected in done.err


def test_a_folder_without_a_database_says_which_command_makes_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And not that it has to be opened for writing."""
    assert command_line.main(["count", "docs", "--data", str(tmp_path / "none")]) == 3
    assert "`vecdb create` or `vecdb import --create` makes one" in capfd.readouterr().err


def test_a_connection_that_fails_names_flags(
    start: StartServer, authority: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of TLS, keys and times; the server counts as one that cannot be reached."""
    cert, key = authority.issue("server", "127.0.0.1")
    address = start(tls_cert=cert, tls_key=key).address

    def said(*words: str) -> tuple[int, str]:
        code = command_line.main(["list", "--server", address, *words])
        return code, capfd.readouterr().err

    code, text = said("--tls")
    assert code == 5
    assert "is of no authority that is trusted here; give --tls-ca (" in text
    code, text = said("--tls", "--timeout-s", "0")
    assert code == 2
    assert "--timeout-s must be a number of seconds above 0" in text
    code, text = said("--server", "db.example", "--api-key-file", key)
    assert code == 2
    assert "the API key must be the text that `vecdb keys add` printed" in text
    Path(key).write_text("vecdb_key")
    code, text = said("--server", "db.example", "--api-key-file", key)
    assert code == 2
    assert text.endswith("where others may read it; give --tls or --tls-ca\n")


def test_what_users_have_named_stays() -> None:
    """Between quotes, in paths and in longer words nothing is exchanged."""
    for text in (
        "no field 'order_by' here",
        'id "a group_by b"',
        "$.order_by",
        "my_order_by",
        "it's",
    ):
        assert in_cli_words(text) == text
    assert in_cli_words("'order_by': order_by takes") == "'order_by': --order-by takes"


def texts() -> Iterator[str]:
    """All texts of the engine and the client; what is filled in is left out."""
    for folder in ("vecdb", "clients/python/vecdb_client", "server/vecdb_server"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name == "cli_words.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_each_phrase_is_said_somewhere() -> None:
    """A message that was put into other words takes its line of the table with it."""
    said = "\n".join(texts())
    for phrase in (*cli_words._PHRASES, *cli_words._ARGUMENTS):
        assert phrase in said, phrase
