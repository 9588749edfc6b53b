"""How the results of these measurements are written: a file of numbers, and a page beside it."""

from __future__ import annotations

import datetime as dt
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import measure


def begun(*words: str) -> dict[str, Any]:
    """What every file of results begins with; `words` follow `python -m bench` in the command."""
    return {
        "command": shlex.join(["python", "-m", "bench", *words]),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": measure.machine(),
    }


def page(title: str, results: dict[str, Any], parts: Sequence[str]) -> str:
    """The page: a title, the command, the first part, the machine, and the other parts."""
    machine, (first, *others) = results["machine"], parts
    on = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, Python "
        f"{machine['python']}; commit {machine['commit']}; load at start {machine['load_at_start']}.\n"
    )
    head = f"# {title}, {results['date'][:10]}\n"
    return "\n".join((head, f"`{results['command']}`\n", first, on, *others))


def save(folder: Path, name: str, results: dict[str, Any], text: str) -> None:
    """Writes `<date>-<name>.json` and `.md`, and prints the page."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{results['date'][:10]}-{name}"
    place.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    place.with_suffix(".md").write_text(text, "utf-8")
    print(text)
