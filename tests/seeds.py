"""The seed of tests that kill processes: another one in each run, the same in all processes of a run, replayed by
setting TEST_SEED."""

import os

RUN_SEED = int(os.environ.setdefault("TEST_SEED", str(int.from_bytes(os.urandom(3), "little"))))
