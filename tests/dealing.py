"""In which order files of tests are dealt out to the processes of `make test`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

LONGEST = (
    "test_index_recall.py",
    "test_device_main.py",
    "test_cut_off.py",
    "test_bench.py",
    "test_bench_run.py",
    "test_adapters.py",
    "test_index_life.py",
    "test_device_main_life.py",
    "test_sums.py",
    "test_index_contract.py",
    "test_index_choice.py",
    "test_index_calibrate.py",
    "test_index_budget.py",
    "test_contract_search.py",
    "test_query_ways.py",
    "test_contract_query.py",
    "test_repair.py",
    "test_histories.py",
    "test_crash_campaign.py",
    "test_crash_campaign_parts.py",
    "test_crash_campaign_kills.py",
    "test_index_concurrent.py",
    "test_device_graph.py",
    "test_repair_pages.py",
    "test_behind.py",
    "test_device_life.py",
    "test_device_graph_beneath.py",
    "test_device_served.py",
    "test_index_files.py",
    "test_joined.py",
    "test_device_kernels.py",
    "test_device_kmeans.py",
    "test_backup_crash.py",
    "test_index_side_files.py",
    "test_index_build.py",
    "test_overload.py",
    "test_durability.py",
    "test_index_side.py",
    "test_postings.py",
    "test_store_crash.py",
    "test_format.py",
    "test_device_placement.py",
    "test_read_processes.py",
    "test_read_process_life.py",
    "test_compaction.py",
    "test_power_cuts.py",
    "test_store_model.py",
    "test_backup_model.py",
    "test_index_borders.py",
)
"""The files that take more than one part in a hundred of `make test` or of `make test-long`, the longest of either first.

One that is dealt out last keeps one process busy after the others have ended. `pytest --durations=0` tells the times."""


def longest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The tests of the files named above in that order, then the others as they came; UsageError where a file is no more."""
    folder = Path(__file__).parent
    if gone := [name for name in LONGEST if not (folder / name).is_file()]:
        raise pytest.UsageError(f"{__file__} names files that are not there: {', '.join(gone)}")
    place = {name: i for i, name in enumerate(LONGEST)}
    return sorted(items, key=lambda item: place.get(item.path.name, len(place)))
