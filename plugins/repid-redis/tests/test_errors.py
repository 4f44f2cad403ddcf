"""What users are told when something is wrong with a server, an URL or the network: by real servers, in time, without secrets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.retry import Retry

from repid_core.errors import BrokerConnectionError, BucketBrokerError, BucketConnectionError, MessageBrokerError
from repid_redis import RedisBucketBroker, RedisMessageBroker
from repid_redis.errors import RIGHTS, explain, passes
from servers import Server, any_binary, eventually, free_port, redis_binary
from tls import Certificates, TlsFront

SECRET = "a-secret"  # noqa: S105
TIMEOUT = timedelta(seconds=2)
Broker = RedisBucketBroker | RedisMessageBroker
BROKERS = [RedisBucketBroker, RedisMessageBroker]
Serve = Callable[..., Server]

pytestmark = pytest.mark.parametrize("kind", BROKERS)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "certificates")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and all that Python shows with it."""
    seen: list[BaseException] = []
    todo = [error]
    while todo:
        error = todo.pop()
        if error is not None and error not in seen:
            seen.append(error)
            todo += [error.__cause__, None if error.__suppress_context__ else error.__context__]
    return iter(seen)


async def use(broker: Broker) -> None:
    """What shows whether a server can be worked with."""
    if isinstance(broker, RedisBucketBroker):
        await broker.store_bucket("b", SECRET.encode(), timedelta(seconds=1))
    else:
        await broker.flush_queue("q")


async def fails(
    kind: type[Broker], url: str, said: str, address: str, *, away: bool = True, **settings: Any
) -> BucketBrokerError | MessageBrokerError:
    """Check the error that there is at the latest when the server is asked for something."""
    broker = kind(url, connect_timeout=TIMEOUT, **settings)
    wanted: tuple[type[BucketBrokerError | MessageBrokerError], ...] = (BucketBrokerError, MessageBrokerError)
    if away:
        wanted = (BucketConnectionError, BrokerConnectionError)
    start = time.monotonic()
    with pytest.raises(wanted) as caught:  # noqa: PT012 — either step may be the one that fails
        try:
            await broker.connect()
            await use(broker)
        finally:
            await broker.disconnect()
    assert time.monotonic() - start < TIMEOUT.total_seconds() + 1
    assert said in str(caught.value)
    assert address in str(caught.value)
    assert caught.value.__cause__ is not None
    for error in chain(caught.value):
        assert SECRET not in str(error) + repr(error)
    assert not [task for task in asyncio.all_tasks() if "repid" in task.get_name()]
    return caught.value


@asynccontextmanager
async def answering(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """A server that is no Redis."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


# -- who asks ----------------------------------------------------------------------------------------------------------------


async def test_wrong_password(kind: type[Broker], serve: Serve) -> None:
    server = serve(requirepass="another")
    address = f"127.0.0.1:{server.port}"
    await fails(kind, f"redis://:{SECRET}@{address}", "user or password is wrong", address)
    await fails(kind, f"redis://{address}", "user or password is wrong", address, username="bob", password=SECRET)


async def test_no_password(kind: type[Broker], serve: Serve) -> None:
    server = serve(requirepass=SECRET)
    await fails(kind, f"redis://127.0.0.1:{server.port}", "it asks for a password", str(server.port))


async def test_a_password_that_nobody_asks_for(kind: type[Broker], serve: Serve) -> None:
    server = serve()
    await fails(kind, f"redis://:{SECRET}@127.0.0.1:{server.port}", "it asks for no password", str(server.port))


async def test_a_user_may_not_touch_the_keys(kind: type[Broker], serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "bob", "on", f">{SECRET}", "~other:*", "+@all")
    url = f"redis://bob:{SECRET}@127.0.0.1:{server.port}"
    error = await fails(kind, url, "the user may not do this", str(server.port), away=False)
    assert "access" in str(error)
    assert not isinstance(error, BucketConnectionError | BrokerConnectionError)


async def test_a_user_may_not_use_the_commands(kind: type[Broker], serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "bob", "on", f">{SECRET}", "~*", "-@all", "+info")
    url = f"redis://bob:{SECRET}@127.0.0.1:{server.port}"
    error = await fails(kind, url, "the user may not do this", str(server.port), away=False)
    assert ("'set'" if kind is RedisBucketBroker else "'evalsha'") in str(error)
    assert "+@write" in str(error)


async def test_the_rights_that_are_named_are_enough(kind: type[Broker], serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "bob", "on", ">pw", "resetkeys", "resetchannels", "nocommands",
                               *RIGHTS.replace("PREFIX", "repid").split())  # fmt: skip
        broker = kind(f"redis://bob:pw@127.0.0.1:{server.port}/1", client_name="bob's")
        await broker.connect()
        try:
            await use(broker)
            await broker.ping()
            if isinstance(broker, RedisBucketBroker):
                waiting = asyncio.create_task(broker.wait_for("c", timedelta(seconds=5)))
                await asyncio.sleep(0.1)  # so that it waits before the bucket comes
                await broker.store_many([("c", b"1", None), ("d", b"2", None)])
                assert await waiting == b"1"
                assert broker._watch.able
                assert await broker.get_many(["c", "d"]) == [b"1", b"2"]
                await broker.delete_many(["c", "d"])
            else:
                consumer = broker.consumer("q", ["t"], prefetch=1)
                await consumer.start()
                await consumer.pause()
                await consumer.close()
                await broker.queue_stats("q")
                await broker.delete_queue("q")
        finally:
            await broker.disconnect()
        assert client.execute_command("ACL", "LOG") == []


# -- which server ------------------------------------------------------------------------------------------------------------


async def test_unreachable(kind: type[Broker]) -> None:
    port = free_port()
    await fails(kind, f"redis://:{SECRET}@127.0.0.1:{port}", "nothing accepts connections there", f"127.0.0.1:{port}")
    await fails(kind, f"redis://:{SECRET}@localhost:{port}", "nothing accepts connections there", f"localhost:{port}")


async def test_unknown_host(kind: type[Broker]) -> None:
    await fails(kind, f"redis://:{SECRET}@no-host.invalid", "name cannot be resolved", "no-host.invalid:6379")


async def test_no_socket(kind: type[Broker], tmp_path: Path) -> None:
    await fails(kind, f"redis+unix://{tmp_path}/redis.sock", "there is no such file", f"{tmp_path}/redis.sock")


async def test_no_such_database(kind: type[Broker], serve: Serve) -> None:
    server = serve(databases="2")
    await fails(kind, f"redis://127.0.0.1:{server.port}/2", "it has no database of this number", str(server.port))


async def test_a_server_that_is_silent(kind: type[Broker]) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with answering(silent) as port:
        await fails(kind, f"redis://:{SECRET}@127.0.0.1:{port}", "it does not answer in time", f"127.0.0.1:{port}")


@pytest.mark.parametrize("password", ["", f":{SECRET}@"])
@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\x00\x00\x09\x01", b"SSH-2.0-OpenSSH\r\n"])
async def test_a_server_that_is_no_redis(kind: type[Broker], greeting: bytes, password: str) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read(1)

    async with answering(other) as port:
        await fails(kind, f"redis://{password}127.0.0.1:{port}", "what answers there is no Redis server", f"127.0.0.1:{port}")


async def test_a_server_that_hangs_up(kind: type[Broker]) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with answering(rude) as port:
        await fails(kind, f"redis://127.0.0.1:{port}", "it closed the connection", f"127.0.0.1:{port}")


@pytest.mark.parametrize("password", ["", f":{SECRET}@"])
async def test_a_server_that_is_too_old(kind: type[Broker], password: str) -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():  # it repeats the arguments of what it does not know
            words = []
            for _ in range(int(line[1:])):
                await reader.readline()
                words.append((await reader.readline()).strip())
            shown = b", ".join(b"`%b`" % word for word in words[1:])
            writer.write(b"-ERR unknown command `%b`, with args beginning with: %b\r\n" % (words[0], shown))

    async with answering(old) as port:
        await fails(kind, f"redis://{password}127.0.0.1:{port}", "it lacks a command: Redis 6.2", f"127.0.0.1:{port}")


async def test_a_sentinel_is_no_server(kind: type[Broker], tmp_path: Path, serve: Serve) -> None:
    server = serve()
    sentinel = Server(str(any_binary()), tmp_path / "sentinel", kind="sentinel",
                      lines=f"sentinel monitor m 127.0.0.1 {server.port} 1").start()  # fmt: skip
    try:
        await fails(kind, f"redis://127.0.0.1:{sentinel.port}", "it must be no sentinel", str(sentinel.port), away=False)
        address = f"'other' of the sentinels 127.0.0.1:{sentinel.port}"
        await fails(kind, f"redis+sentinel://127.0.0.1:{sentinel.port}/other", "watch a server of this name", address)
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/m"
        await fails(kind, url, "`sentinel_password`", str(sentinel.port), sentinel_password=SECRET)
        await fails(kind, url, "it asks for no password", str(sentinel.port), password=SECRET)
    finally:
        sentinel.stop()


async def test_a_server_is_no_sentinel(kind: type[Broker], serve: Serve) -> None:
    server = serve()
    await fails(kind, f"redis+sentinel://127.0.0.1:{server.port}/m", "it is no sentinel: write redis://", str(server.port))


async def test_a_server_is_no_cluster(kind: type[Broker], serve: Serve) -> None:
    server = serve()
    await fails(kind, f"redis+cluster://127.0.0.1:{server.port}", "it is no node of a cluster: write redis://", str(server.port))


async def test_a_node_of_a_cluster_is_no_server(kind: type[Broker], serve: Serve) -> None:
    server = serve(cluster_enabled="yes")
    said = "it is a node of a cluster: write redis+cluster://, without a database"
    if redis_binary() is None:  # Valkey's clusters can have several
        said = "it has no database of this number"
    await fails(kind, f"redis://127.0.0.1:{server.port}/1", said, str(server.port))
    said = "the cluster does not serve, as nodes are missing"
    await fails(kind, f"redis://127.0.0.1:{server.port}", said, str(server.port))
    said = "see that all its nodes run, and have met"
    await fails(kind, f"redis+cluster://127.0.0.1:{server.port}", said, str(server.port))


# -- TLS ---------------------------------------------------------------------------------------------------------------------


_GOODBYE = 0.1  # seconds; both sides of TLS say it, and nothing tells when they have


@asynccontextmanager
async def speaking_tls(
    server: str, serve: Serve, certificates: Certificates, name: str = "server", *, ask_client: bool = False
) -> AsyncIterator[int]:
    """The port of a server that speaks TLS: Redis itself, or, as there are binaries without TLS, something in front of one."""
    if server == "front":
        async with TlsFront(serve().port, certificates, name, ask_client=ask_client) as front:
            yield front.port
            await asyncio.sleep(_GOODBYE)
        return
    if redis_binary() is None:
        pytest.skip("there is no redis-server; the test with something in front of another has to do")
    port = free_port()
    serve("redis", **certificates.options(port, name, tls_auth_clients="yes" if ask_client else "no"))
    yield port
    await asyncio.sleep(_GOODBYE)


def trusting(certificates: Certificates) -> dict[str, Any]:
    return {"ssl_ca_certs": certificates.authority}


@pytest.mark.parametrize("server", ["redis", "front"])
async def test_tls(kind: type[Broker], server: str, serve: Serve, certificates: Certificates) -> None:
    async with speaking_tls(server, serve, certificates) as port:
        for settings in ({"ssl_ca_certs": certificates.authority}, {"ssl_cert_reqs": "none"}):
            broker = kind(f"rediss://127.0.0.1:{port}", **settings)
            await broker.connect()
            await use(broker)
            await broker.disconnect()
        address = f"127.0.0.1:{port}"
        await fails(kind, f"rediss://{address}", "its certificate is not trusted", address)
        await fails(kind, f"redis://{address}", "whether it wants TLS (rediss://)", address)
        error = await fails(kind, f"rediss://{address}", "ssl_ca_certs='nowhere.pem'", address, ssl_ca_certs="nowhere.pem")
        assert "there is no such file" in str(error)


@pytest.mark.parametrize("server", ["redis", "front"])
async def test_tls_with_the_certificate_of_another(
    kind: type[Broker], server: str, serve: Serve, certificates: Certificates
) -> None:
    async with speaking_tls(server, serve, certificates, "elsewhere") as port:
        url, known = f"rediss://127.0.0.1:{port}", trusting(certificates)
        error = await fails(kind, url, "its certificate is not trusted", str(port), **known)
        assert "write the host as the certificate does" in str(error)
        broker = kind(url, ssl_check_hostname=False, **known)
        await broker.connect()
        await broker.disconnect()


@pytest.mark.parametrize("server", ["redis", "front"])
async def test_tls_that_wants_to_know_the_client(
    kind: type[Broker], server: str, serve: Serve, certificates: Certificates
) -> None:
    async with speaking_tls(server, serve, certificates, ask_client=True) as port:
        url, known = f"rediss://127.0.0.1:{port}", trusting(certificates)
        await fails(kind, url, "ssl_certfile", str(port), **known)
        broker = kind(url, ssl_certfile=certificates.certificate("client"), ssl_keyfile=certificates.key("client"), **known)
        await broker.connect()
        await use(broker)
        await broker.disconnect()


async def test_tls_where_there_is_none(kind: type[Broker], serve: Serve) -> None:
    server = serve()
    await fails(kind, f"rediss://127.0.0.1:{server.port}", "one that has no TLS is silent to rediss://", str(server.port))

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR Protocol error\r\n")
        await reader.read(1)

    async with answering(plain) as port:
        await fails(kind, f"rediss://127.0.0.1:{port}", "it does not speak TLS there", str(port))


# -- how the server is -------------------------------------------------------------------------------------------------------


async def test_too_many_clients(kind: type[Broker], serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        client.config_set("maxclients", 1)
        await fails(kind, f"redis://127.0.0.1:{server.port}", "as many clients as it allows", str(server.port))


async def test_a_replica(kind: type[Broker], serve: Serve) -> None:
    primary = serve()
    replica = serve(replicaof=f"127.0.0.1 {primary.port}")
    await fails(kind, f"redis://127.0.0.1:{replica.port}", "it is a replica, which takes no writes", str(replica.port))


async def test_loading(kind: type[Broker], serve: Serve) -> None:
    server = serve(enable_debug_command="yes", key_load_delay="1000", loading_process_events_interval_bytes="1024")
    with server.client() as client:
        client.mset({f"key{number}": "x" * 100 for number in range(20_000)})
        client.save()
    server.kill()
    server.wait = lambda: None  # type: ignore[method-assign]
    server.restart()
    address = f"127.0.0.1:{server.port}"
    with server.client(retry=Retry(NoBackoff(), 0)) as client:
        eventually(lambda: "loading" in _said(client), "it does not load")
        await fails(kind, f"redis://{address}", "it is loading its data", address)
        assert "loading" in _said(client)


def _said(client: redis.Redis) -> str:
    try:
        return str(client.get("key"))
    except redis.BusyLoadingError as error:
        return str(error)


@pytest.mark.parametrize(
    ("said", "explained", "passing"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "its memory is full", True),
        ("MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk.", "its disk", True),
        ("NOREPLICAS Not enough good replicas to write.", "fewer replicas than its min-replicas-to-write", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "has lost its primary", True),
        ("BUSY Redis is busy running a script.", "SCRIPT KILL", True),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "is moving these keys", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "give another `prefix`", False),
        ("CROSSSLOT Keys in request don't hash to the same slot", "write redis+cluster://", False),
        ("ERR Protocol error: invalid bulk length", "lower `max_payload`", False),
        ("ERR something new", "something new", False),
    ],
)
def test_what_servers_say(kind: type[Broker], said: str, explained: str, passing: bool) -> None:
    from redis._parsers.base import BaseParser

    error = BaseParser.parse_error(said)  # type: ignore[no-untyped-call]
    assert explained in explain(error, "h:1")
    assert "Redis at h:1: " in explain(error, "h:1")
    assert passes(error) is passing


def test_secrets_and_payloads_are_not_repeated(kind: type[Broker]) -> None:
    error = ResponseError("unknown command 'SET', with args beginning with: 'key' 'a-secret' ")
    assert "secret" not in explain(error, "h:1")
    assert "unknown command 'SET'" in explain(error, "h:1")
    assert "secret" not in explain(RedisConnectionError("redis://user:a-secret@h:1 is away"), "h:1")


async def test_no_memory(kind: type[Broker], serve: Serve) -> None:
    if kind is RedisMessageBroker:
        pytest.skip("what its queues do then is tested with the faults")
    server = serve(maxmemory="100kb", maxmemory_policy="noeviction")
    await fails(kind, f"redis://127.0.0.1:{server.port}", "its memory is full", str(server.port))
