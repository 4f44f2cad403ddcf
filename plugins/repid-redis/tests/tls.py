"""Certificates, and TLS in front of servers that have none."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Self

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

    def options(self, port: int, name: str = "server", **more: str) -> dict[str, str]:
        """For a server that speaks TLS on this port."""
        return {
            "tls_port": str(port),
            "tls_cert_file": self.certificate(name),
            "tls_key_file": self.key(name),
            "tls_ca_cert_file": self.authority,
            "tls_auth_clients": "no",
            **more,
        }


class TlsFront:
    """Speaks TLS with clients, and plainly with the server behind it: for server binaries that are built without TLS."""

    def __init__(self, port: int, certificates: Certificates, name: str = "server", *, ask_client: bool = False) -> None:
        self.target = port
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(certificates.certificate(name), certificates.key(name))
        if ask_client:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(certificates.authority)

    async def __aenter__(self) -> Self:
        self.tasks: set[asyncio.Task[None]] = set()
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.port: int = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        ways = [asyncio.create_task(_copy(reader, far_writer)), asyncio.create_task(_copy(far_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # by `__aexit__`; asyncio's streams take a task that ends so for a fault
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for each in (writer, far_writer):
                each.transport.abort()
            self.tasks.discard(task)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
