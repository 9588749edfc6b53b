"""An authority with certificates in files, as an operator has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Authority:
    """An authority with certificates in files, as an operator has them."""

    def __init__(self, folder: Path) -> None:
        self._ca = pytest.importorskip("trustme").CA()
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *identities: str, common_name: str | None = None) -> tuple[str, str]:
        """Writes <name>.pem and <name>.key, each replaced as a whole; their paths."""
        made = self._ca.issue_cert(*identities, common_name=common_name)
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        for path, data in ((key, made.private_key_pem.bytes()), (cert, chain)):
            aside = path.with_suffix(path.suffix + ".new")
            aside.write_bytes(data)
            os.replace(aside, path)
        return str(cert), str(key)
