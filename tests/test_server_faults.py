"""A server in trouble answers with typed errors and goes on."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import serving

import vecdb
from vecdb_client import connect, errors


def test_a_full_map_over_the_network(data_folder):
    """At the map limit a client gets StorageFull, reads go on, and room made by a drop can be used."""
    settings = {"map_initial_bytes": 1 << 20, "map_limit_bytes": 2 << 20}
    with serving(data_folder, **settings) as address, connect(address) as db:
        docs = db.create_collection("docs", dimension=64)
        done = 0
        with pytest.raises(errors.StorageFull, match="map_limit_bytes"):
            while done < 100_000:
                ids = [f"r{i}" for i in range(done, done + 100)]
                docs.insert(ids, np.ones((100, 64)), documents=ids)
                done += 100
        assert docs.count() == done > 0
        assert docs.query(np.ones(64), k=1).distances.shape == (1, 1)
        assert docs.check().ok
        db.drop_collection("docs")
        again = db.create_collection("docs", dimension=64)
        assert again.insert(["a"], np.ones((1, 64))).sequence == 1


def test_a_dropped_collection_over_the_network(data_folder):
    """A client that still holds a dropped collection gets CollectionNotFound."""
    with serving(data_folder) as address, connect(address) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        db.drop_collection("docs")
        with pytest.raises(errors.CollectionNotFound, match="docs"):
            docs.query([[1, 2]])


def test_a_reader_beside_a_server(data_folder):
    """Another process's folder lock is respected, and read-only use beside the server works."""
    with serving(data_folder) as address, connect(address) as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
        with pytest.raises(vecdb.errors.DatabaseLocked):
            vecdb.open(data_folder)
