"""Of the measurements: what keeps them from paying for fresh memory."""

from __future__ import annotations

from bench import host_memory


def test_memory_is_taken_by_a_file_of_holes(tmp_path):
    """The file has the length asked for and nothing on the disk, is read whole, and goes in the end."""
    with host_memory.taken(tmp_path, 64 << 20) as cached:
        (path,) = tmp_path.iterdir()
        assert path.stat().st_size == 64 << 20
        assert path.stat().st_blocks * 512 < 1 << 20
        cached.read()
    assert list(tmp_path.iterdir()) == []
    assert host_memory.fresh_ms_a_mib() > 0
