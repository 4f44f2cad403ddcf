"""What goes wrong is said by name, with what to do, and without passwords."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from repid_core import Connection, Job
from repid_core.data import MessageCategory
from repid_core.errors import BrokerConnectionError, EnqueueError, MessageBrokerError, UnsupportedFeatureError
from repid_rabbitmq import RabbitMessageBroker
from repid_rabbitmq.line import Line
from servers import Node
from tls import Certificates

SECOND = timedelta(seconds=1)


async def refused(url: str, **settings: Any) -> str:
    """What connecting raises."""
    broker = RabbitMessageBroker(url, connect_timeout=SECOND, **settings)
    before = asyncio.all_tasks()
    with pytest.raises(BrokerConnectionError) as error:
        await broker.connect()
    assert error.value.__cause__ is not None
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    text = f"{error.value}{error.value.__cause__!r}"
    assert "wr0ng" not in text
    return str(error.value)


async def test_wrong_password(node: Node) -> None:
    said = await refused(node.url.replace("guest:guest", "guest:wr0ng"))
    assert re.search(f"127.0.0.1:{node.port} said 403 ACCESS_REFUSED.*user or password is wrong.*correct the URL", said)


async def test_missing_virtual_host(node: Node) -> None:
    said = await refused(f"{node.url}nowhere")
    assert re.search("vhost nowhere not found.*rabbitmqctl add_vhost", said)


async def test_a_user_without_rights(node: Node, prefix: str) -> None:
    """Connecting goes well; what is not allowed says which right is missing."""
    await asyncio.to_thread(node.add_user, "reader", "wr0ng", read=".*", write=".*")
    url = node.url.replace("guest:guest", "reader:wr0ng")
    async with Connection(RabbitMessageBroker(url, prefix=prefix)) as connection:
        with pytest.raises(MessageBrokerError, match=r"access to queue .*rabbitmqctl set_permissions") as error:
            await Job("work", "q", connection=connection).enqueue()
        assert "wr0ng" not in f"{error.value}{error.value.__cause__!r}"
    async with Connection(RabbitMessageBroker(node.url, prefix=prefix)) as connection:
        await connection.message_broker.declare_queue("q")
    async with Connection(RabbitMessageBroker(url, prefix=prefix, declare=False)) as connection:
        await Job("work", "q", connection=connection).enqueue()
        consumer = connection.message_broker.consumer("q", ["work"], prefetch=1)
        await consumer.start()
        [delivery] = await consumer.receive(1)
        await delivery.ack()
        await consumer.close()
    await asyncio.to_thread(node.add_user, "deaf", "wr0ng", read=".*")
    url = node.url.replace("guest:guest", "deaf:wr0ng")
    async with Connection(RabbitMessageBroker(url, prefix=prefix, declare=False)) as connection:
        with pytest.raises(EnqueueError, match=r"access to exchange .*rabbitmqctl set_permissions"):
            await Job("work", "q", connection=connection).enqueue()


async def test_a_missing_queue_that_may_not_be_made(node: Node, prefix: str) -> None:
    async with Connection(RabbitMessageBroker(node.url, prefix=prefix, declare=False)) as connection:
        with pytest.raises(MessageBrokerError, match=f"no queue '{prefix}.v1:q'.*let declare be True, or make it"):
            await Job("work", "q", connection=connection).enqueue()


async def test_a_queue_that_was_made_otherwise(node: Node, prefix: str) -> None:
    """The error says which argument differs; nothing is changed, and nothing is lost."""
    async with Connection(RabbitMessageBroker(node.url, prefix=prefix)) as connection:
        await Job("work", "q", connection=connection).enqueue()
    async with Connection(RabbitMessageBroker(node.url, prefix=prefix, queue_type="quorum")) as connection:
        with pytest.raises(MessageBrokerError, match=r"inequivalent arg 'x-[a-z-]+' for queue .*made with other settings"):
            await Job("work", "q", connection=connection).enqueue()
    async with Connection(RabbitMessageBroker(node.url, prefix=prefix)) as connection:
        assert (await connection.message_broker.queue_stats("q")).ready == 1


@pytest.mark.parametrize(("maker", "user"), [((3, 13), (3, 10)), ((3, 10), (3, 13)), ((), (3, 10))])
async def test_a_queue_that_another_version_of_the_server_has_made(
    node: Node, prefix: str, monkeypatch: pytest.MonkeyPatch, maker: tuple[int, ...], user: tuple[int, ...]
) -> None:
    """Only servers before 3.12 are told to keep classic queues on disk; what is there already stays, and is used."""
    for ready, version in enumerate((maker, user), start=1):
        monkeypatch.setattr(Line, "version", version)
        async with Connection(RabbitMessageBroker(node.url, prefix=prefix)) as connection:
            await Job("work", "q", connection=connection).enqueue()
            assert (await connection.message_broker.queue_stats("q")).ready == ready
    found = await asyncio.to_thread(node.queues)
    asked = [{word: value for word, _, value in queue["arguments"]} for name, queue in found.items() if name.startswith(prefix)]
    assert [arguments.get("x-queue-mode") for arguments in asked] == 2 * ["lazy" if maker == (3, 10) else None]


class Stranger(asyncio.Protocol):
    """Something that is no RabbitMQ: it says its answer and waits; if that is empty, it hangs up."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._answer:
            transport.write(self._answer)
        elif self._answer is not None:
            transport.abort()


@asynccontextmanager
async def listening(answer: bytes | None) -> AsyncIterator[int]:
    """Where a stranger listens."""
    server = await asyncio.get_running_loop().create_server(lambda: Stranger(answer), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it is no AMQP 0-9-1 server, but speaks something that begins with b'HTTP"),
        (b"AMQP\x00\x01\x00\x00", "but speaks another version of AMQP"),
        (b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0b\xff", "the server sent what cannot be read"),
        (b"", "the server hung up"),
        (None, "nothing was heard within 0:00:01.*see that the server runs"),
    ],
)
async def test_what_is_no_server(answer: bytes | None, said: str) -> None:
    async with listening(answer) as port:
        assert re.search(said, await refused(f"amqp://guest:wr0ng@127.0.0.1:{port}/"))


async def test_nothing_listens() -> None:
    async with listening(b"") as port:
        pass
    assert "nothing listens there" in await refused(f"amqp://guest:wr0ng@127.0.0.1:{port}/")


async def test_a_host_that_is_not_known() -> None:
    assert re.search("name is not known|cannot be reached", await refused("amqp://nowhere.invalid/"))


async def test_the_next_host_is_tried(node: Node) -> None:
    async with listening(b"") as port:
        pass
    for _ in range(4):
        broker = RabbitMessageBroker(f"amqp://127.0.0.1:{port},127.0.0.1:{node.port}/")
        await broker.connect()
        await broker.ping()
        await broker.disconnect()


async def test_the_server_shows_who_is_connected(node: Node, prefix: str) -> None:
    broker = RabbitMessageBroker(node.url, prefix=prefix, connection_name="my app")
    async with Connection(broker):
        consumer = broker.consumer("q", ["work"], prefetch=1)
        await consumer.start()

        def names() -> list[str]:
            properties = [dict(map(_pair, each["client_properties"])) for each in node.connections()]
            return sorted(str(each.get("connection_name", "")) for each in properties)

        shown = await asyncio.to_thread(names)
        await consumer.close()
    assert [name.rpartition(" ")[0] for name in shown] == ["my app consume", "my app publish"]


def _pair(entry: Any) -> tuple[str, Any]:
    return entry[0], entry[-1]


async def test_delayed_messages_cannot_be_taken(node: Node, prefix: str) -> None:
    async with Connection(RabbitMessageBroker(node.url, prefix=prefix)) as connection:
        with pytest.raises(UnsupportedFeatureError):
            connection.message_broker.consumer("q", None, prefetch=1, category=MessageCategory.DELAYED)


async def test_headers_that_do_not_fit(node: Node, prefix: str) -> None:
    async with Connection(RabbitMessageBroker(node.url, prefix=prefix)) as connection:
        with pytest.raises(EnqueueError, match=r"headers take 200,.*the server takes 130,"):
            await Job("work", "q", headers={"a": "x" * 200_000}, connection=connection).enqueue()
        await Job("work", "q", headers={"a": "x" * 100_000}, connection=connection).enqueue()


# -- TLS -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "tls")


def listens(certificates: Certificates, name: str = "server") -> tuple[str, str, str]:
    return certificates.authority, certificates.certificate(name), certificates.key(name)


async def test_tls(serve: Callable[..., Node], certificates: Certificates, prefix: str) -> None:
    node = serve(tls=listens(certificates))
    url = f"amqps://guest:guest@127.0.0.1:{node.tls_port}/"
    broker = RabbitMessageBroker(url, prefix=prefix, ssl_ca_certs=certificates.authority)
    async with asyncio.timeout(10), Connection(broker) as connection:
        await Job("work", "q", args={"data": "x" * 300_000}, connection=connection).enqueue()
        consumer = connection.message_broker.consumer("q", ["work"], prefetch=1)
        await consumer.start()
        [delivery] = await consumer.receive(1)
        assert len(delivery.envelope.payload) > 300_000
        await delivery.ack()
        await consumer.close()
    broker = RabbitMessageBroker(url, ssl_cert_reqs="none")
    await broker.connect()
    await broker.disconnect()
    assert "is not trusted" in await refused(url)
    assert re.search("TLS failed|hung up|lost", await refused(f"amqps://127.0.0.1:{node.port}/", ssl_cert_reqs="none"))
    assert re.search("hung up|lost|speaks something|nothing was heard", await refused(f"amqp://127.0.0.1:{node.tls_port}/"))


async def test_tls_with_a_certificate_for_another_host(serve: Callable[..., Node], certificates: Certificates) -> None:
    node = serve(tls=listens(certificates, "elsewhere"))
    url = f"amqps://guest:guest@127.0.0.1:{node.tls_port}/"
    assert "is not trusted" in await refused(url, ssl_ca_certs=certificates.authority)
    broker = RabbitMessageBroker(url, ssl_ca_certs=certificates.authority, ssl_check_hostname=False)
    await broker.connect()
    await broker.disconnect()


async def test_tls_that_wants_to_know_the_client(serve: Callable[..., Node], certificates: Certificates) -> None:
    node = serve(tls=listens(certificates), ask=True)
    url = f"amqps://guest:guest@127.0.0.1:{node.tls_port}/"
    own = {"ssl_certfile": certificates.certificate("client"), "ssl_keyfile": certificates.key("client")}
    broker = RabbitMessageBroker(url, ssl_ca_certs=certificates.authority, **own)
    await broker.connect()
    await broker.ping()
    await broker.disconnect()
    assert re.search("TLS failed|lost|hung up", await refused(url, ssl_ca_certs=certificates.authority))


async def test_what_is_refused_is_sent_once_more_over_another_channel(node: Node, prefix: str) -> None:
    """One that was opened while the leader of a quorum queue died takes nothing until that is back; a new one does."""
    broker = RabbitMessageBroker(node.url, prefix=prefix)
    async with Connection(broker) as connection:
        await Job("work", "q", connection=connection).enqueue()
        publisher = broker._publisher
        assert publisher is not None
        first = publisher._channel
        assert first is not None
        first.on_confirm(publisher._tag + 1, False, False)  # of nothing
        answer = first.on_confirm
        first.on_confirm = lambda tag, multiple, taken: answer(tag, multiple, False)  # it refuses what comes now
        outcomes = await connection.enqueue_many([Job("work", "q", connection=connection) for _ in range(10)])
        assert [outcome for outcome in outcomes if isinstance(outcome, Exception)] == []
        assert not first.is_open
        assert publisher._channel is not first
        node.ctl("set_policy", "full", f"^{prefix}", '{"max-length": 1, "overflow": "reject-publish"}', "--apply-to", "queues")
        try:
            with pytest.raises(EnqueueError, match="did not take the message: its queue is full") as caught:
                await Job("work", "q", connection=connection).enqueue()
            assert not caught.value.maybe_enqueued
        finally:
            node.ctl("clear_policy", "full")
        await Job("work", "q", connection=connection).enqueue()
        await broker.delete_queue("q")
