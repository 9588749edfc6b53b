"""What is wrong with a data set that someone names."""

from __future__ import annotations


class BadDataset(ValueError):
    """A data set cannot be read, or cannot be measured on. The message says what was found, what was
    expected and what to do."""
