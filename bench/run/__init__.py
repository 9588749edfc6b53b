"""`python -m bench run`: vecdb beside other systems, every workload, one file of JSON lines."""

from .main import main

__all__ = ["main"]
