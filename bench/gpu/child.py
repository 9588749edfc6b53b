"""`python -m bench.gpu.child TASK`: one part in a process of its own; a CUDA abort costs this part only."""

from __future__ import annotations

import importlib
import json
import sys

from .plan import Context, Task

if __name__ == "__main__":
    task = Task(**json.loads(sys.argv[1]))
    importlib.import_module(task.module).run(Context(task))
