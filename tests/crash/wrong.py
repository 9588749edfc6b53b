"""What a comparison raises."""

from __future__ import annotations


class Wrong(Exception):
    """The database does not hold what it must."""
