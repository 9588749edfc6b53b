"""A planted system that says it runs outside of the load process, as a server of somebody else's does."""

from __future__ import annotations

from typing import ClassVar

import bench_planted


class System(bench_planted.System):
    outside: ClassVar = True
