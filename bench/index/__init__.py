"""`python -m bench index`: what an index must show, measured beside what it is compared with."""

from .run import main

__all__ = ["main"]
