"""The numbers that pages, goals and plots show, each named once by workload, case and key."""

from __future__ import annotations

from .cells import Column
from .lines import Run

MIB = 1 / 2**20


def rate(run: Run, title: str, workload: str, case: str) -> Column:
    """Queries a second of a case; the recall that is meant is in the case's name, else the lowest target."""
    targets = run.about["target_recall"]
    found = [one for one in targets if case.endswith(f"recall={one}")]
    return Column(title, workload, case, "qps", target=found[0] if found else min(targets))


def load() -> Column:
    return Column("load rows/s", "load", "", "rows_per_s")


def ready() -> Column:
    """From the first row to the last one indexed: some index while they take rows, some afterwards."""
    title = "load and index s"
    return Column(title, "load", "ready", "seconds", higher=False, after="")


def upsert() -> Column:
    return Column("upsert rows/s", "update", "upsert", "rows_per_s")


def deletes() -> Column:
    return Column("delete rows/s", "update", "delete", "rows_per_s")


def changed(run: Run) -> Column:
    """Single queries right after a tenth of the rows was written again and a tenth deleted."""
    return rate(run, "QPS after changes", "update", "query")


def mixed(run: Run) -> list[Column]:
    """Operations a second of the mix of queries and writes, by each number of callers."""
    cases = sorted(run.cases("rag"), key=lambda case: int(case.rpartition("=")[2]))
    return [
        rate(run, case.replace("callers=", "RAG mix callers ", 1), "rag", case) for case in cases
    ]


def while_loading(run: Run) -> list[Column]:
    """Queries a second from one caller while rows are inserted, and the rows a second beside it."""
    if not run.cases("load_query"):
        return []
    return [
        rate(run, "QPS while loading", "load_query", ""),
        Column("rows/s while asked", "load_query", "", "rows_per_s"),
    ]


def many(run: Run) -> list[Column]:
    """Many collections: made, asked, and what they take. Who did not make all of them in time is weighed with those it
    made."""
    return [
        column
        for case in run.cases("many")
        for column in (
            Column(f"collections {case} rows/s", "many", case, "rows_per_s"),
            rate(run, f"collections {case} QPS", "many", case),
            Column(
                f"collections {case} memory / raw", "many", case, "memory_bytes", higher=False,
                instead="memory_server_bytes", raw=True,
            ),
            Column(f"collections {case} disk / raw", "many", case, "disk_to_raw", higher=False),
        )
    ]  # fmt: skip


def grown(run: Run) -> list[Column]:
    """The last rows of a collection that grows, and queries then."""
    # Who ended in the middle has a line without a case.
    sizes = {int(case.partition(" ")[0]) for case in run.cases("growth") if case}
    if not sizes:
        return []
    size = max(sizes)
    return [
        Column(f"rows/s at {size:,} rows", "growth", f"{size}", "rows_per_s"),
        *(
            rate(run, f"QPS at {size:,} rows", "growth", case)
            for case in run.cases("growth")
            if case.startswith(f"{size} recall=")
        ),
    ]


def opened() -> Column:
    return Column("open to answer s", "open", "", "seconds", higher=False)


def memory() -> Column:
    """Resident memory after reopening and some queries: of the server alone where there is one, which its load process is
    no part of."""
    return Column(
        "memory MiB",
        "open",
        "",
        "memory_bytes",
        higher=False,
        scale=MIB,
        instead="memory_server_bytes",
    )


def disk() -> Column:
    return Column("disk / raw", "open", "", "disk_to_raw", higher=False)


def filters(run: Run) -> list[Column]:
    """The filter cases, from few rows allowed to many."""
    return [rate(run, f"filter {case}", "filter", case) for case in filter_cases(run)]


def filter_cases(run: Run) -> list[str]:
    return sorted(run.cases("filter"), key=_share)


def _share(case: str) -> float:
    try:
        return float(case.partition(" %")[0])
    except ValueError:
        return 0.0


def singles(run: Run) -> list[Column]:
    """Single queries by each number of callers at each recall that is asked for."""
    cases = [case for case in run.cases("single") if " recall=" in case]
    return [
        rate(run, case.replace("callers=", "QPS callers ", 1), "single", case) for case in cases
    ]


def usual(run: Run) -> list[Column]:
    """One column for each thing that a user waits or pays for: what engines are ranked by."""
    present = set(run.cases("batch"))
    batches = [
        rate(run, f"batch of {case}", "batch", case) for case in present if " recall=" in case
    ]
    return [
        load(),
        ready(),
        *singles(run),
        *sorted(batches, key=lambda one: one.title),
        *filters(run),
        upsert(),
        deletes(),
        changed(run),
        *mixed(run),
        *while_loading(run),
        memory(),
        disk(),
        opened(),
        *many(run),
        *grown(run),
    ]
