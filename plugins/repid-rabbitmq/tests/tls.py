"""Certificates."""

from __future__ import annotations

from pathlib import Path

import trustme


class Certificates:
    """An authority, and what it has signed: for a server on 127.0.0.1, for one elsewhere, and for a client.

    Attributes:
        authority: The file of its certificate; the others by their names, and each with its key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        self.authority = str(folder / "authority.pem")
        authority.cert_pem.write_to_path(self.authority)
        for name, host in (("server", "127.0.0.1"), ("elsewhere", "elsewhere.example"), ("client", "client.example")):
            signed = authority.issue_cert(host)
            signed.private_key_pem.write_to_path(str(folder / f"{name}.key"))
            for number, part in enumerate(signed.cert_chain_pems):
                part.write_to_path(str(folder / f"{name}.pem"), append=number > 0)

    def certificate(self, name: str) -> str:
        return str(self.folder / f"{name}.pem")

    def key(self, name: str) -> str:
        return str(self.folder / f"{name}.key")
