"""VectorDBBench's performance case over a set of one's own: load, index, callers at once, then one caller
with recall.

The runners, their processes and the measuring are VectorDBBench's. Its recall counts the very ids of
neighbors.parquet, so of rows that are equally far only one is right.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import measure
from ..datasets import ROOT
from ..peers.server import Server
from ..sources import CACHE, DATASETS, Source, prepare

RESULTS = ROOT / "bench" / "results"
_BATCH = 1_000
_TIMEOUT_S = 3_600


def main(argv: Sequence[str]) -> int:
    """0; writes <date>-vectordbbench-<set>-<rows>.json and .md. Raises what the case raises."""
    args = _arguments(argv)
    source = prepare(args.dataset, args.rows, args.queries, 1, args.cache)
    with tempfile.TemporaryDirectory(prefix="vecdb-vdbb-") as work:
        # Where their package logs to, read when it is imported; it would be the current folder.
        os.environ.setdefault("LOG_FILE", str(Path(work) / "log"))
        from . import layout

        machine = measure.machine()
        layout.write(source, Path(work) / "set", args.k)
        words = ["-m", "vecdb_server", "serve", "--data", str(Path(work) / "data"), "--port", "0"]
        server = Server([sys.executable, *words], heard=True)
        try:
            target = server.first_line().split()[-1]
            found = case(source, Path(work) / "set", target, args)
        finally:
            server.stop()
    now = dt.datetime.now(dt.UTC)
    results = {
        "command": shlex.join(["python", "-m", "bench", "vectordbbench", *argv]),
        "date": now.isoformat(timespec="seconds"),
        "machine": machine,
        "dataset": source.described(),
        "k": args.k,
        "version": metadata.version("vectordb-bench"),
        **found,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"{now:%Y-%m-%d}-vectordbbench-{source.name}-{source.rows}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = page(results)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {path} and .md")
    return 0


def task(source: Source, folder: Path, target: str, args: argparse.Namespace) -> Any:
    """Their description of the case: vecdb, the custom set in `folder`, all stages."""
    from vectordb_bench.models import (
        CaseConfig,
        CaseType,
        ConcurrencySearchConfig,
        TaskConfig,
    )

    import vecdb_client

    from .client import VecdbCaseConfig, VecdbConfig
    from .registry import registered

    with vecdb_client.connect(target) as client:
        version = client.server_info().version
    return TaskConfig(
        db=registered(),
        db_config=VecdbConfig(target=target, version=version),
        db_case_config=VecdbCaseConfig(target_recall=args.target_recall),
        case_config=CaseConfig(
            case_id=CaseType.PerformanceCustomDataset,
            k=args.k,
            concurrency_search_config=ConcurrencySearchConfig(
                num_concurrency=list(args.callers),
                concurrency_duration=args.seconds,
                concurrency_timeout=_TIMEOUT_S,
            ),
            custom_case={
                "name": f"{source.name} {source.rows}",
                "description": source.structure,
                "load_timeout": _TIMEOUT_S,
                "optimize_timeout": _TIMEOUT_S,
                "dataset_config": {
                    "name": source.name,
                    "dir": str(folder.resolve()),
                    "size": source.rows,
                    "dim": source.dimension,
                    "metric_type": "COSINE",
                    "file_count": 1,
                    "use_shuffled": False,
                    "with_gt": True,
                },
            },
        ),
        load_concurrency=args.loaders,
        insert_batch_size=_BATCH,
    )


def case(source: Source, folder: Path, target: str, args: argparse.Namespace) -> dict[str, Any]:
    """What their runner measures, as their own result file has it. Raises what the case raises."""
    from vectordb_bench.backend.assembler import Assembler
    from vectordb_bench.backend.data_source import DatasetSource
    from vectordb_bench.models import CaseResult, TestResult

    described = task(source, folder, target, args)
    runner = Assembler.assemble("vecdb", described, DatasetSource.S3)
    figures = runner.run(drop_old=True)
    result = TestResult(
        run_id="vecdb",
        task_label=source.name,
        results=[CaseResult(metrics=figures, task_config=described)],
    )
    # Through JSON, as their own file would be.
    held = json.loads(json.dumps(result.model_dump_for_output(), default=float))["results"][0]
    held["task_config"]["db_config"].pop("target", None)
    held["task_config"]["case_config"]["custom_case"]["dataset_config"].pop("dir", None)
    return {"metrics": held["metrics"], "task_config": held["task_config"]}


def page(results: dict[str, Any]) -> str:
    machine, dataset, found = results["machine"], results["dataset"], results["metrics"]
    case_config = results["task_config"]["db_case_config"]
    lines = [
        f"# vecdb in VectorDBBench {results['version']}, {results['date'][:10]}\n",
        f"`{results['command']}`\n",
        f"Performance case over a custom data set, through vecdb's gRPC server on the same machine."
        f" {dataset['name']}: {dataset['rows']:,} rows of {dataset['dimension']} dimensions,"
        f" {dataset['queries']:,} queries, k = {results['k']}, cosine, `target_recall`"
        f" {case_config['target_recall']}, durable on each batch of {_BATCH:,} rows. The time of inserts has the start of the process that inserts in it."
        " VectorDBBench's recall counts"
        " the very ids of the true neighbours, so rows that are equally far can count as wrong. Its callers are"
        " processes of Python.\n",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']},"
        f" Python {machine['python']}; commit {machine['commit']}; load at start {machine['load_at_start']}.\n",
        "| measured | |\n| --- | ---: |",
        f"| inserted | {found['inserted_count']:,} rows |",
        f"| insert | {found['insert_duration']:.1f} s,"
        f" {found['inserted_count'] / max(found['insert_duration'], 1e-9):,.0f} rows/s |",
        f"| until all are indexed | {found['optimize_duration']:.1f} s more |",
        f"| recall@{results['k']} | {found['recall']:.4f} |",
        f"| one caller: p50, p95, p99 | {found['serial_latency_p50'] * 1e3:.2f},"
        f" {found['serial_latency_p95'] * 1e3:.2f}, {found['serial_latency_p99'] * 1e3:.2f} ms |",
        f"| highest rate | {found['qps']:,.0f} queries/s |\n",
        "| callers | queries/s | p50 ms | p95 ms | p99 ms |\n| ---: | ---: | ---: | ---: | ---: |",
    ]
    columns = ("num", "qps", "latency_p50", "latency_p95", "latency_p99")
    for callers, qps, *latencies in zip(
        *(found[f"conc_{name}_list"] for name in columns), strict=True
    ):
        times = " | ".join(f"{one * 1e3:.2f}" for one in latencies)
        lines.append(f"| {callers} | {qps:,.0f} | {times} |")
    return "\n".join(lines) + "\n"


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench vectordbbench", description=__doc__)
    parser.add_argument("--dataset", default="wordnet", help=f"{', '.join(DATASETS)}, or a file")
    parser.add_argument("--rows", type=int, help="at most; default: all, 1,000,000 of clusters")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--k", type=int, default=100, help="answers a query; theirs is 100")
    parser.add_argument("--target-recall", type=float, default=0.95)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--seconds", type=int, default=10, help="of each number of callers")
    parser.add_argument("--loaders", type=int, default=1, help="threads that insert")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(argv)
