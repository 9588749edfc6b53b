"""Backups of a database that goes on serving: taking, verifying, restoring and removing them."""

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .chains import list_backups
    from .planning import plan
    from .restoring import fill
    from .retention import prune_backups
    from .taking import Source, take
    from .target import open_target
    from .verifying import verify_backups
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "chains": "list_backups",
            "planning": "plan",
            "restoring": "fill",
            "retention": "prune_backups",
            "taking": "Source take",
            "target": "open_target",
            "verifying": "verify_backups",
        },
    )

__all__ = [
    "Source",
    "fill",
    "list_backups",
    "open_target",
    "plan",
    "prune_backups",
    "take",
    "verify_backups",
]
