"""A process that ends with databases open: they are closed, and nothing of theirs takes it down in another way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import vecdb
from vecdb import open_here

OPENED = """
    import os, sys, numpy as np, vecdb
    rng = np.random.default_rng(1)
    db = vecdb.open(sys.argv[1], device="cpu", audit_share=1.0)
    spread = rng.standard_normal((6, 256))
    def points(n):
        return rng.standard_normal((n, 6)) @ spread
    docs = db.create_collection("docs", dimension=256, index="ivf")
    docs.insert([f"r{i}" for i in range(20_000)], points(20_000))
"""


def ended(data_folder, code):
    """A Python process that has opened a database, has run this and has ended."""
    script = textwrap.dedent(OPENED) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", script, str(data_folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_an_audit_ends_before_the_interpreter(data_folder):
    """A recall audit, nearly always in FAISS, is under way where a script ends that has closed nothing: without SIGABRT."""
    done = ended(
        data_folder,
        """
        import threading
        from vecdb.index.view import View
        docs.build_index()
        real, begun = View.search, threading.Event()
        def search(*given, **named):
            answer = real(*given, **named)
            while threading.current_thread().name == "vecdb-audit" and not db._closed:
                begun.set()
                real(*given, **named)
            return answer
        View.search = search
        assert docs.query(points(1), k=10, explain=True).explain.plan == "lists"
        assert begun.wait(60)
        print("end")
        """,
    )
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


SEARCHING = """
    import threading, time
    from vecdb.index.view import View
    docs.build_index()
    real, begun = View.search, threading.Event()
    def search(*given, **named):
        answer = real(*given, **named)
        if threading.current_thread().daemon:
            begun.set()
            closed_s = None
            while closed_s is None or time.monotonic() < closed_s + 1.0:
                if closed_s is None and db._closed:
                    closed_s = time.monotonic()
                real(*given, **named)
        return answer
    View.search = search
    asked = [points(1)]
"""


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("audited", [True, False])
def test_searches_end_before_the_interpreter(data_folder, audited, closed):
    """A recall audit, or a search of a daemon thread, that goes on for a second after the database was closed, by the script or at
    its end, ends first: without SIGABRT."""
    own = "threading.Thread(target=docs.query, args=asked, kwargs={'k': 10}, daemon=True).start()"
    code = [
        textwrap.dedent(SEARCHING), "docs.query(*asked, k=10)" if audited else own,
        "assert begun.wait(60)", "db.close()" if closed else "", "print('end')",
    ]  # fmt: skip
    done = ended(data_folder, "\n".join(code))
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_a_large_batch_of_a_daemon_thread_does_not_go_on_at_the_end(data_folder):
    """It ends with the slice that is under way: without SIGABRT, though it would take longer than is waited for."""
    done = ended(
        data_folder,
        """
        import threading
        from vecdb.index.view import View
        docs.build_index()
        real, begun = View.search, threading.Event()
        def search(view, queries, k, **named):
            for _ in range(1_000):  # nearly always in FAISS, and never for long
                real(view, queries[:1], k, **named)
            begun.set()
            return real(view, queries, k, **named)
        View.search = search
        threading.Thread(target=docs.query, args=(points(40_000),), kwargs={"k": 10}, daemon=True).start()
        assert begun.wait(60)
        """,
    )
    assert done.returncode == 0, done.stderr


def test_the_end_waits_for_no_threads_of_others(data_folder):
    """Those of a client that is still connected, whose names begin alike and which live on, hold up nothing: waited for they would
    take the patience of 20 s."""
    done = ended(
        data_folder,
        """
        import threading, time
        threading.Thread(target=time.sleep, args=(3_600,), name="vecdb-queries", daemon=True).start()
        from vecdb import open_here
        open_here.PATIENCE_S = 3_600.0
        """,
    )
    assert done.returncode == 0, done.stderr


def test_threads_that_may_outlive_their_database_are_known():
    """Each daemon thread of the engine with a name of its own is waited for at the end, or by what closes the database."""
    folder = Path(open_here.__file__).parent
    found = set()
    for file in folder.rglob("*.py"):
        found |= set(re.findall(r'name="(vecdb-[\w-]+)",\s*daemon=True', file.read_text()))
    joined = {"vecdb-build", "vecdb-sync"}  # by `Builder.close`, `LazySync.close`
    assert found == open_here.BEHIND | joined


def test_a_build_ends_before_the_interpreter(data_folder):
    """So does a build; what was written is there."""
    done = ended(data_folder, "print(docs.build_index(wait=False) is None)")
    assert done.returncode == 0, done.stderr
    with vecdb.open(data_folder, device="cpu") as db:
        assert db.get_collection("docs").count() == 20_000


def test_an_error_or_exit_code_of_the_script_stays(data_folder):
    """How the process ends is the script's affair."""
    assert ended(data_folder, "sys.exit(7)").returncode == 7


def test_a_forked_process_closes_nothing_of_its_parent(data_folder):
    """Where a forked child ends as Python does, its parent goes on with the database, and nobody else may write it."""
    done = ended(
        data_folder,
        """
        child = os.fork()
        if not child:
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        docs.insert(["more"], points(1))
        there = 'import sys, vecdb; vecdb.open(sys.argv[1])'
        import subprocess
        other = subprocess.run([sys.executable, "-c", there, sys.argv[1]], capture_output=True, text=True)
        print(docs.count(), "DatabaseLocked" in other.stderr)
        """,
    )
    assert (done.returncode, done.stdout) == (0, "20001 True\n"), done.stderr


def test_a_process_forked_while_another_thread_opens_one_can_open_others(data_folder):
    """The child has not that thread, nor waits for it."""
    done = ended(
        data_folder,
        """
        import signal
        from vecdb import open_here
        with open_here.lock:
            child = os.fork()
            if not child:
                signal.alarm(60)
                with vecdb.open(sys.argv[1] + "-other", device="cpu") as other:
                    other.create_collection("docs", dimension=2)
                os._exit(0)
            print(os.waitpid(child, 0)[1])
        """,
    )
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_sigterm_ends_a_script_as_ever(data_folder):
    """A signal that Python does not catch runs no such code: what was acknowledged is there all the same."""
    done = ended(data_folder, "os.kill(os.getpid(), 15)")
    assert done.returncode == -signal.SIGTERM
    with vecdb.open(data_folder, device="cpu") as db:
        assert db.get_collection("docs").count() == 20_000
