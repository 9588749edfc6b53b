"""`python -m bench gpu`: what a card can do, and how much of it search on the card reaches."""

from .run import main

__all__ = ["main"]
