"""vecdb for VectorDBBench: its client, how it is registered, its files, and a run on a set of one's own.

Nothing of their package is changed on disk. It has an environment of its own, with `requirements.txt`;
`python -m bench vectordbbench` runs there.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Imported late: everything below needs their package."""
    from .run import main as run

    return run(argv)
