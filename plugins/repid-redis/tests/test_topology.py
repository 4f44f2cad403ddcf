"""Connections to one server, to the primary that sentinels name, and to the nodes of a cluster: which, how, and how long."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, RedisError

from repid_core.testing.proxy import FaultProxy
from repid_redis.settings import RedisSettings
from repid_redis.topology import Cluster, Sentinel, Standalone, Topology, topology
from servers import Cluster as ClusterServers
from servers import Sentinels, Server, any_binary, eventually, free_port, redis_binary
from tls import Certificates

SECOND = timedelta(seconds=1)
Serve = Callable[..., Server]


@asynccontextmanager
async def connection(where: Topology, node: str | None = None, **how: Any) -> AsyncIterator[AbstractConnection]:
    opened = await where.connect(node, **how)
    try:
        yield opened
    finally:
        await opened.disconnect()


async def ask(connection: AbstractConnection, *command: Any) -> Any:
    await connection.send_command(*command, check_health=False)
    return await connection.read_response()


async def port_of(where: Topology, node: str | None = None) -> int:
    """Which server it is that a connection goes to."""
    async with connection(where, node) as opened:
        return int((await ask(opened, "CONFIG", "GET", "port"))[1])


@pytest.mark.parametrize(
    ("url", "kind", "address"),
    [
        ("redis://user:pw@nowhere.invalid:1/2", Standalone, "nowhere.invalid:1"),
        ("redis+unix://user:pw@/nowhere/redis.sock", Standalone, "/nowhere/redis.sock"),
        ("redis+sentinel://user:pw@a.invalid,[::1]:2/m", Sentinel, "'m' of the sentinels a.invalid:26379,[::1]:2"),
        ("redis+cluster://user:pw@a.invalid,b.invalid:2", Cluster, "a.invalid:6379,b.invalid:2"),
    ],
)
def test_making_one_opens_nothing(url: str, kind: type[Topology], address: str) -> None:
    """Outside of a loop too; and errors will not have the password."""
    where = topology(RedisSettings(url))
    assert type(where) is kind
    assert where.address == address


# -- one server --------------------------------------------------------------------------------------------------------------


async def test_connections_are_as_the_settings_say(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "bob", "on", ">b:o/b", "~*", "+@all")
        where = topology(
            RedisSettings(f"redis://ann:wrong@127.0.0.1:{server.port}/1", username="bob", password="b:o/b", db=3, client_name="c")  # noqa: S106
        )
        async with connection(where) as opened:
            [seen] = [one for one in client.client_list() if one["name"] == "c"]
            assert (seen["user"], seen["db"], seen["resp"]) == ("bob", "3", "2")
            assert opened.socket_timeout is None
            assert opened.health_check_interval == 0
            assert opened._writer is not None
            transport = opened._writer.transport.get_extra_info("socket")
            assert transport.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert await ask(opened, "ECHO", b"\xff") == b"\xff"
        async with connection(where, pushes=True):
            [seen] = [one for one in client.client_list() if one["name"] == "c"]
            assert (seen["user"], seen["db"], seen["resp"]) == ("bob", "3", "3")


async def test_connecting_takes_few_commands(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        for url, most in (("", 1), ("/2", 2)):
            client.config_resetstat()
            async with connection(topology(RedisSettings(f"redis://127.0.0.1:{server.port}{url}"))):
                seen = {name: stats["calls"] for name, stats in client.info("commandstats").items()}
            assert sum(seen.values()) - seen["cmdstat_config|resetstat"] <= most, seen


async def test_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "r e.sock"
    server = serve(unixsocket=f'"{path}"')
    where = topology(RedisSettings(f"unix://{str(path).replace(' ', '%20')}?db=4"))
    assert where.address == str(path)
    async with connection(where) as opened:
        assert b"db=4" in await ask(opened, "CLIENT", "INFO")
    assert await port_of(where) == server.port


async def test_a_server_that_does_not_serve_yet_is_not_connected_to(serve: Serve) -> None:
    """So nothing is sent that may or may not be carried out."""
    server = serve()
    with server.client() as client:
        where = topology(RedisSettings(server.url))
        client.config_set("maxclients", 1)
        with pytest.raises(RedisError, match="max number of clients reached"):
            await where.connect()
        client.config_set("maxclients", 10)
        client.execute_command("ACL", "SETUSER", "default", "-ping")
        async with connection(where) as opened:
            assert await ask(opened, "ECHO", "x") == b"x"


@pytest.mark.parametrize("url", ["redis://{}", "rediss://{}", "redis+sentinel://{},{},{}/m", "redis+cluster://{},{},{}"])
async def test_the_time_limit_is_for_all_together(url: str) -> None:
    """Servers that take connections and say nothing, however many."""
    with suppress(OSError), socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        where = topology(RedisSettings(url.format(*[address] * 3), connect_timeout=2 * SECOND))
        start = time.monotonic()
        with pytest.raises((TimeoutError, RedisError)):
            await where.connect()
        assert time.monotonic() - start < 4  # three servers, one by one, would take six
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_cancelling_leaves_no_connection(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        where = topology(RedisSettings(f"redis://127.0.0.1:{server.port}/2", client_name="cancelled"))
        for turns in range(40):
            task = asyncio.create_task(where.connect())
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.cancel():
                with suppress(asyncio.CancelledError):
                    await (await task).disconnect(nowait=True)
            else:
                await task.result().disconnect(nowait=True)
        assert len(await asyncio.to_thread(_others, client)) == 0


def _others(client: redis.Redis) -> list[Any]:
    eventually(lambda: len(client.client_list()) == 1, "connections are left")
    return client.client_list()[1:]


# -- sentinels ---------------------------------------------------------------------------------------------------------------


async def test_sentinels_name_the_primary(sentinels: Sentinels) -> None:
    where = topology(RedisSettings(sentinels.url))
    assert await where.node_of("key") is None
    assert await port_of(where) == sentinels.primary.port

    async with FaultProxy("127.0.0.1", sentinels.sentinels[0].port) as hung:
        hung.stall()
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{hung.port},127.0.0.1:{sentinels.sentinels[1].port}"
        where = topology(RedisSettings(f"redis+sentinel://{hosts}/{sentinels.name}", connect_timeout=2 * SECOND))
        assert await port_of(where) == sentinels.primary.port, "one is down, one hangs, the third knows"
        start = time.monotonic()
        assert await port_of(where) == sentinels.primary.port
        assert time.monotonic() - start < 1, "who knew the last time is asked first"
        hung.accept()

    with sentinels.replica.client() as replica, sentinels.primary.client() as primary:
        with sentinels.sentinels[0].client() as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", sentinels.name)
        eventually(lambda: replica.role()[0] in (b"master", "master"), "the replica does not take over")
        eventually(lambda: primary.role()[0] in (b"slave", "slave"), "the primary does not step down")
        async with asyncio.timeout(10):
            while await _port_or_none(where) != sentinels.replica.port:
                await asyncio.sleep(0.05)


async def _port_or_none(where: Topology) -> int | None:
    try:
        return await port_of(where)
    except RedisError:
        return None


async def test_a_primary_that_is_none_is_not_taken(serve: Serve, tmp_path: Path) -> None:
    """Sentinels learn late of what happens: what they name is asked itself."""
    primary = serve()
    replica = serve(replicaof=f"127.0.0.1 {primary.port}")
    lines = f"sentinel monitor m 127.0.0.1 {primary.port} 2\nsentinel down-after-milliseconds m 60000"
    sentinel = Server(str(any_binary()), tmp_path / "sentinel", kind="sentinel", lines=lines).start()
    try:
        where = topology(RedisSettings(f"redis+sentinel://127.0.0.1:{sentinel.port}/m"))
        assert await port_of(where) == primary.port
        with primary.client() as client:
            client.replicaof("127.0.0.1", replica.port)
        with pytest.raises(RedisError, match=f"names 127.0.0.1:{primary.port}: it is no primary any more"):
            await where.connect()
    finally:
        sentinel.stop()


async def test_sentinels_have_passwords_of_their_own(serve: Serve, tmp_path: Path) -> None:
    server = serve(requirepass="servers")
    lines = f"requirepass sentinels\nsentinel monitor m 127.0.0.1 {server.port} 1\nsentinel auth-pass m servers"
    sentinel = Server(
        str(any_binary()), tmp_path / "sentinel", kind="sentinel", requirepass="sentinels", lines=lines[22:]
    ).start()
    try:
        url = f"redis+sentinel://:servers@127.0.0.1:{sentinel.port}/m"
        where = topology(RedisSettings(url, sentinel_password="sentinels"))  # noqa: S106
        assert await port_of(where) == server.port
        with pytest.raises(RedisError, match="see sentinel_username and sentinel_password"):
            await topology(RedisSettings(url)).connect()
        with pytest.raises(AuthenticationError):
            await topology(RedisSettings(url, password="other", sentinel_password="sentinels")).connect()  # noqa: S106
    finally:
        sentinel.stop()


# -- clusters ----------------------------------------------------------------------------------------------------------------


async def test_each_key_has_its_node(cluster: ClusterServers) -> None:
    where = topology(RedisSettings(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{cluster.nodes[1].port}"))
    with cluster.nodes[0].client() as client:
        for key in [f"key{number}" for number in range(50)] + ["repid:{q}:m", "{}x", "a{b}c"]:
            slot = client.execute_command("CLUSTER", "KEYSLOT", key)
            owner = cluster.nodes[next(n for n in range(3) if slot < 16384 * (n + 1) // 3)]
            assert await where.node_of(key) == await where.node_of(key.encode()) == f"127.0.0.1:{owner.port}"
    assert await port_of(where, await where.node_of("key1")) == int((await where.node_of("key1") or "").rpartition(":")[2])
    assert await port_of(where) in [node.port for node in cluster.nodes]


async def test_the_map_is_kept_and_looked_at_once_for_all(cluster: ClusterServers) -> None:
    where = topology(RedisSettings(cluster.url))
    calls = []
    for node in cluster.nodes:
        with node.client() as client:
            client.config_resetstat()
    await asyncio.gather(*(where.node_of(f"key{number}") for number in range(50)))
    await asyncio.gather(*(where.refresh() for _ in range(50)))
    await where.node_of("key")
    for node in cluster.nodes:
        with node.client() as client:
            calls.append(client.info("commandstats").get("cmdstat_cluster|slots", {}).get("calls", 0))
    assert sum(calls) == 2


async def test_a_slot_that_moves(cluster: ClusterServers) -> None:
    """`refresh` shows it."""
    where = topology(RedisSettings(cluster.url))
    before = await where.node_of("moved")
    slots: list[Any] = [node.client() for node in cluster.nodes]
    slot = slots[0].execute_command("CLUSTER", "KEYSLOT", "moved")
    target = next(node for node in cluster.nodes if not (before or "").endswith(str(node.port)))
    with target.client() as client:
        id_ = client.execute_command("CLUSTER", "MYID")
    owner = next(client for node, client in zip(cluster.nodes, slots, strict=True) if (before or "").endswith(str(node.port)))
    old_id = owner.execute_command("CLUSTER", "MYID")
    try:
        for client in slots:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", id_)
        assert await where.node_of("moved") == before
        await where.refresh()
        assert await where.node_of("moved") == f"127.0.0.1:{target.port}"
    finally:
        for client in slots:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", old_id)
            client.close()


async def test_another_loop_can_use_it(cluster: ClusterServers) -> None:
    where = topology(RedisSettings(cluster.url))

    async def look() -> str | None:
        await asyncio.gather(where.refresh(), where.refresh(), where.refresh())
        return await where.node_of("key")

    first = await look()
    assert await asyncio.to_thread(lambda: asyncio.run(look())) == first


# -- TLS; that of one server is tested with the errors that it can make ------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    if redis_binary() is None:
        pytest.skip("there is no redis-server, and other binaries may have no TLS")
    return Certificates(tmp_path / "certificates")


async def test_sentinels_with_tls(serve: Serve, tmp_path: Path, certificates: Certificates) -> None:
    """To the sentinels, and to what they name."""
    port, own = free_port(), free_port()
    serve("redis", **certificates.options(port))
    options = certificates.options(own, tls_replication="yes", lines=f"sentinel monitor m 127.0.0.1 {port} 1")
    sentinel = Server(str(redis_binary()), tmp_path / "sentinel", kind="sentinel", **options).start()
    try:
        settings = RedisSettings(f"rediss+sentinel://127.0.0.1:{own}/m", ssl_ca_certs=certificates.authority)
        async with connection(topology(settings)) as opened:
            assert (await ask(opened, "CONFIG", "GET", "tls-port"))[1] == str(port).encode()
        with pytest.raises(RedisError, match="CERTIFICATE_VERIFY_FAILED"):
            await topology(RedisSettings(settings.url)).connect()
    finally:
        sentinel.stop()


async def test_a_cluster_with_tls(serve: Serve, certificates: Certificates) -> None:
    port = free_port()
    server = serve("redis", **certificates.options(port, cluster_enabled="yes", tls_cluster="yes"))
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        eventually(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "the cluster does not come together")
    where = topology(RedisSettings(f"rediss+cluster://127.0.0.1:{port}", ssl_ca_certs=certificates.authority))
    assert await where.node_of("key") == f"127.0.0.1:{port}"
    async with connection(where, await where.node_of("key")) as opened:
        assert await ask(opened, "SET", "key", "1") == b"OK"
