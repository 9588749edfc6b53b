"""What a repair has put into quarantine, read and compared with what it told."""

from __future__ import annotations

import base64
import json

from vecdb.layout import DATA_FILE


def wrongly_named(rows, lost):
    """How many lines name a lost record by an id that nothing confirms, and that is none of those lost, or one twice."""
    live = [r for r in rows if r["live"] and r["id"] is not None]
    certain = {r["id"] for r in live if r["id_certain"]}
    guessed = [r["id"] for r in live if not r["id_certain"]]
    assert not certain & {*guessed}
    return len(guessed) - len({*guessed} & lost)


def kept_in(folder, made):
    return folder / "quarantine" / made.quarantine.rpartition("/")[2]


def rows_kept(folder, made):
    """The lines of `rows.jsonl` of a repair: one for each row that it counts as lost, with bytes that stand in the
    old file where the line says."""
    kept = kept_in(folder, made)
    rows = [json.loads(line) for line in (kept / "rows.jsonl").read_text().splitlines()]
    old = (kept / DATA_FILE).read_bytes()
    live = [row for row in rows if row["live"]]
    assert sorted(row["id"] for row in live if row["id"] is not None) == sorted(made.lost)
    assert sum(row["id"] is None for row in live) == made.lost_unknown
    assert len(rows) - len(live) == made.lost_versions
    for row in rows:
        assert row["fault"]
        for part in row["parts"]:
            raw = part["text"].encode() if "text" in part else base64.b64decode(part["base64"])
            assert len(raw) == part["bytes"]
            assert part["at"] is None or old[part["at"] : part["at"] + len(raw)] == raw
    return rows
