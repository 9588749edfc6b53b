"""Messages of the engine and the client, which name methods and arguments of Python, in the words of the command line."""

from __future__ import annotations

import re

_PHRASES = {
    "`list_collections()`": "`vecdb list`",
    "`list_aliases()`": "`vecdb alias`",
    "list_backups shows": "`vecdb backups` shows",
    "or open it with get_collection, or with exist_ok=True": "or give --exist-ok",
    "stop that process, talk to its server, or open with read_only=True": "stop that process, or ask its server (--server)",
    "with backup=": "with --backup ",
    "open it for writing once to make one": "`vecdb create` or `vecdb import --create` makes one",
    "give `api_key` to connect, set VECDB_API_KEY, or send the metadata entry authorization: Bearer <key>": "give "
    "--api-key-file, or set VECDB_API_KEY",
    "api_key must be the text": "the API key must be the text",
    "give tls=True or Tls(ca=...), or send_key_unencrypted=True if something else encrypts the way": "give --tls or --tls-ca",
    "tls=True or Tls(ca=...)": "--tls or --tls-ca",
    ", or give Tls(server_name=...)": "",
    "Tls(ca=...)": "--tls-ca",
    "Tls(cert=..., key=...)": "--tls-cert and --tls-key",
    "connect without `tls`": "leave out --tls and its files, and VECDB_TLS_CA",
}
_ARGUMENTS = {
    "group_by": "--group-by",
    "group_size": "--group-size",
    "max_distance": "--max-distance",
    "mmr_candidates": "--mmr-candidates",
    "mmr_lambda": "--mmr",
    "order_by": "--order-by",
    "target_recall": "--target-recall",
    "timeout_s": "--timeout-s",
}
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
"""What users have named: it stays as it is."""
_FOUND = re.compile(
    f"{_QUOTED}|(?:{'|'.join(map(re.escape, _PHRASES))})"
    rf"|(?<![\w.$-])(?:{'|'.join(_ARGUMENTS)})(?![\w.])"
)


def in_cli_words(message: str) -> str:
    """A message as somebody should read it who typed a command: its flags and commands in place of arguments and
    methods. Quoted texts are as they were."""
    words = {**_PHRASES, **_ARGUMENTS}
    return _FOUND.sub(lambda found: words.get(found[0], found[0]), message)
