"""Results as a JSON file for programs and a page with tables for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(folder: Path, name: str, results: dict[str, Any]) -> str:
    """Writes <name>.json and <name>.md into `folder`; the text of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    text = page(results)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return text


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


def page(results: dict[str, Any]) -> str:
    machine = results["machine"]
    dataset = results["dataset"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    parts = [
        f"# First measurement, {results['date'][:10]}\n",
        f"`{results['command']}`\n",
        f"{dataset['name']}: {dataset['rows']:,} rows of {dataset['dimension']} dimensions,"
        f" {dataset['queries']:,} queries, k = {results['k']}, cosine, recall target"
        f" {results['target_recall']}; medians of {results['rounds']} interleaved rounds, lowest and"
        " highest rate in brackets.\n",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
        f" {machine['system']}, Python {machine['python']}; {versions}; commit {machine['commit']};"
        f" load at start {machine['load_at_start']}.\n",
        "## Insert: batches of 1,000 with document and four fields\n",
        _table(
            ("system", "rows/s", "all inserted", "all indexed"),
            [
                (name, f"{one['insert_rows_per_s']:,.0f}", f"{one['insert_s']:.1f} s",
                 f"{one['ready_s']:.1f} s")
                for name, one in results["insert"].items()
            ],
        ),
        "vecdb is durable after each batch; raw FAISS holds vectors in memory and nothing else.\n",
        "## Queries\n",
    ]  # fmt: skip
    for case, systems in results["query"].items():
        rows = []
        for name, one in systems.items():
            reached = "" if one["recall"] is None else f"{one['recall']:.4f}"
            rate = f"{one['queries_per_s']:,.0f}"
            spread = f" ({one['queries_per_s_low']:,.0f}-{one['queries_per_s_high']:,.0f})"
            note = f", efSearch {one['efSearch']}" if "efSearch" in one else ""
            times = (f"{one['p50_ms']:.2f} ms", f"{one['p99_ms']:.2f} ms")
            rows.append((name + note, rate + spread, *times, reached))
        share = next((one["allowed"] for one in systems.values() if "allowed" in one), None)
        allowed = "" if share is None else f" (allows {share:.1%} of the rows)"
        header = (case + allowed, "queries/s", "p50 of a call", "p99 of a call", "recall@10")
        parts.append(_table(header, rows))
    parts.append("## Space and reopening\n")
    rows = []
    for name, one in results["space"].items():
        process = one.get("process_memory_bytes")
        rows.append(
            (
                name,
                _mib(one["disk_bytes"]),
                f"{one['disk_to_raw']:.2f}",
                _mib(one["index_memory_bytes"]),
                "" if process is None else _mib(process),
            )
        )
    header = ("system", "on disk", "disk / raw vectors", "index in memory", "server process")
    parts.append(_table(header, rows))
    reopen = results["reopen"]
    parts.append(
        f"Opened again in {reopen['open_s']:.2f} s, first answer after"
        f" {reopen['first_answer_s']:.2f} s (median, file cache warm).\n"
    )
    return "\n".join(parts)
