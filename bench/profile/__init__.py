"""`python -m bench profile`: where the time of one workload of vecdb goes, by layer."""

from __future__ import annotations

from .main import main
from .workloads import WORKLOADS

__all__ = ["WORKLOADS", "main"]
