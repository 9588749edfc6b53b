"""Makes the Grafana dashboard from a table of panels.

python tools/dashboard.py            writes deploy/grafana/dashboards/vecdb.json
python tools/dashboard.py --check    writes nothing, exits with 1 when the committed file is stale
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "deploy/grafana/dashboards/vecdb.json"
_I = 'instance=~"$instance"'
_C = f'{_I},collection=~"$collection"'

PANELS: tuple[tuple[str, tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]], ...] = (
    ("Calls", (
        ("Calls a second", "reqps", ((f"sum by (method) (rate(vecdb_calls_seconds_count{{{_I}}}[$__rate_interval]))", "{{method}}"),)),
        ("Errors a second", "reqps", ((f'sum by (method, code) (rate(vecdb_calls_seconds_count{{{_I},code!="OK"}}[$__rate_interval]))', "{{method}} {{code}}"),)),
        ("Time of queries", "s", tuple((f'histogram_quantile({q}, sum by (le) (rate(vecdb_calls_seconds_bucket{{{_I},method=~"Query|QueryStream"}}[$__rate_interval])))', f"p{100 * q:g}") for q in (0.5, 0.95, 0.99))),
        ("Time of writes, p99", "s", ((f'histogram_quantile(0.99, sum by (le, method) (rate(vecdb_calls_seconds_bucket{{{_I},method=~"Insert|Upsert|Update|Delete"}}[$__rate_interval])))', "{{method}}"),)),
        ("Running and waiting", "short", ((f"vecdb_calls_running{{{_I}}}", "running {{pool}}"), (f"vecdb_calls_waiting{{{_I}}}", "waiting {{pool}}"))),
        ("Waiting for a thread, p99", "s", ((f"histogram_quantile(0.99, sum by (le, pool) (rate(vecdb_calls_wait_seconds_bucket{{{_I}}}[$__rate_interval])))", "{{pool}}"),)),
        ("Refused because of load, a second", "reqps", ((f"sum by (reason) (rate(vecdb_calls_refused_total{{{_I}}}[$__rate_interval]))", "{{reason}}"), (f"sum by (reason) (rate(vecdb_calls_unsent_total{{{_I}}}[$__rate_interval]))", "request did not come: {{reason}}"))),
        ("Clients", "short", ((f"vecdb_calls_clients{{{_I}}}", "{{pool}}"),)),
        ("Slow queries a minute", "short", ((f"60 * rate(vecdb_slow_queries_total{{{_I}}}[$__rate_interval])", "slow"),)),
    )),
    ("Search and commits", (
        ("Queries in one search", "short", ((f"rate(vecdb_search_batch_queries_sum{{{_I}}}[$__rate_interval]) / rate(vecdb_search_batch_queries_count{{{_I}}}[$__rate_interval])", "mean"),)),
        ("Searches that wait", "short", ((f"vecdb_search_waiting{{{_I}}}", "waiting"),)),
        ("Commits a second", "ops", ((f"rate(vecdb_commit_seconds_count{{{_C}}}[$__rate_interval])", "{{collection}}"),)),
        ("Time of commits, p99", "s", ((f"histogram_quantile(0.99, sum by (le, collection) (rate(vecdb_commit_seconds_bucket{{{_C}}}[$__rate_interval])))", "{{collection}}"),)),
        ("Writes that share a commit", "short", ((f"rate(vecdb_commit_writes_sum{{{_C}}}[$__rate_interval]) / rate(vecdb_commit_writes_count{{{_C}}}[$__rate_interval])", "{{collection}}"),)),
    )),
    ("Collections", (
        ("Live rows", "short", ((f"vecdb_rows_live{{{_C}}}", "{{collection}}"),)),
        ("Dead and fresh rows", "short", ((f"vecdb_rows_dead{{{_C}}}", "dead {{collection}}"), (f"vecdb_index_tail_rows{{{_C}}}", "fresh {{collection}} {{vector}}"))),
        ("Recall", "percentunit", ((f"vecdb_index_audited_recall{{{_C}}}", "live {{collection}} {{vector}}"), (f"vecdb_index_calibrated_recall{{{_C}}}", "calibrated {{collection}} {{vector}}"), (f"vecdb_index_target_recall{{{_C}}}", "target {{collection}} {{vector}}"))),
        ("Builds", "percentunit", ((f"vecdb_index_build_progress{{{_C}}} and vecdb_index_building{{{_C}}} == 1", "{{collection}} {{vector}}"),)),
        ("Memory of indexes", "bytes", ((f"vecdb_index_memory_bytes{{{_C}}}", "{{collection}} {{vector}}"),)),
        ("On the disk", "bytes", ((f"vecdb_disk_bytes{{{_C}}}", "{{collection}}"),)),
        ("LMDB map in use, share of its limit", "percentunit", ((f"vecdb_map_used_bytes{{{_C}}} / vecdb_map_limit_bytes{{{_C}}}", "{{collection}}"),)),
        ("LMDB readers, share of the slots", "percentunit", ((f"vecdb_map_readers{{{_C}}} / vecdb_map_max_readers{{{_C}}}", "{{collection}}"),)),
    )),
    ("GPUs", (
        ("Memory that placements take", "bytes", ((f"vecdb_device_used_bytes{{{_I}}}", "{{device}}"), (f"vecdb_device_budget_bytes{{{_I}}}", "budget {{device}}"))),
        ("Queries a second", "reqps", ((f"rate(vecdb_device_queries_total{{{_I}}}[$__rate_interval])", "{{device}}"), (f"rate(vecdb_device_taken_over_queries_total{{{_I}}}[$__rate_interval])", "by the CPU instead"))),
        ("Searches that wait", "short", ((f"vecdb_device_queued{{{_I}}}", "{{device}}"),)),
        ("Restarts in a day", "short", ((f"increase(vecdb_device_restarts_total{{{_I}}}[1d])", "{{device}}"),)),
        ("Evictions a minute", "short", ((f"60 * rate(vecdb_device_evictions_total{{{_I}}}[$__rate_interval])", "{{device}}"),)),
    )),
    ("Processes", (
        ("CPU", "percentunit", ((f"rate(process_cpu_seconds_total{{{_I}}}[$__rate_interval])", "{{instance}}"), (f"rate(vecdb_read_process_cpu_seconds_total{{{_I}}}[$__rate_interval])", "{{instance}} {{process}}"))),
        ("Memory", "bytes", ((f"process_resident_memory_bytes{{{_I}}}", "{{instance}}"), (f"vecdb_read_process_resident_bytes{{{_I}}}", "{{instance}} {{process}}"))),
        ("Reading processes", "short", ((f"vecdb_read_processes{{{_I}}}", "up"), (f"increase(vecdb_read_process_restarts_total{{{_I}}}[1d])", "restarts in a day"))),
        ("Open files", "short", ((f"process_open_fds{{{_I}}}", "{{instance}}"),)),
    )),
)  # fmt: skip
"""Rows of panels: title, unit, and expressions with the names of their lines."""

_WIDTH, _HEIGHT = 8, 8
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in PANELS:
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "gridPos": place,
                       "collapsed": False, "panels": []})  # fmt: skip
        y += 1
        for n, (title, unit, lines) in enumerate(members):
            place = {"x": n % 3 * _WIDTH, "y": y + n // 3 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            targets = [
                {
                    "refId": chr(65 + i),
                    "datasource": _SOURCE,
                    "expr": expression,
                    "legendFormat": name,
                }
                for i, (expression, name) in enumerate(lines)
            ]
            panels.append({
                "id": len(panels) + 1, "type": "timeseries", "title": title, "gridPos": place,
                "datasource": _SOURCE, "targets": targets,
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "options": {"legend": {"displayMode": "list", "placement": "bottom"},
                            "tooltip": {"mode": "multi"}},
            })  # fmt: skip
        y += (len(members) + 2) // 3 * _HEIGHT
    return {
        "uid": "vecdb", "title": "vecdb", "schemaVersion": 41, "version": 1, "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"}, "editable": True, "tags": ["vecdb"],
        "templating": {"list": [
            {"name": "source", "type": "datasource", "query": "prometheus", "label": "Source"},
            _variable("instance", "label_values(vecdb_info, instance)"),
            _variable("collection", "label_values(vecdb_rows_live, collection)"),
        ]},
        "panels": panels,
    }  # fmt: skip


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name, "type": "query", "datasource": _SOURCE, "query": query, "refresh": 2,
        "includeAll": True, "multi": True, "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def main(argv: list[str]) -> int:
    text = json.dumps(dashboard(), indent=1) + "\n"
    if argv == ["--check"]:
        if FILE.exists() and FILE.read_text(encoding="utf-8") == text:
            return 0
        print(f"{FILE.name} is stale: run make stubs", file=sys.stderr)
        return 1
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
