"""Which connection jobs, queues and workers take if they are given none."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from repid_core import Connection, InMemoryMessageBroker, Job, Queue, Repid
from repid_core.app import current_connection
from repid_core.errors import NoConnectionError, NotConnectedError, UsageError, WrongEventLoopError


@pytest.fixture
def app() -> Repid:
    return Repid(Connection(InMemoryMessageBroker()))


@pytest.fixture
def other() -> Repid:
    return Repid(Connection(InMemoryMessageBroker()))


def bound() -> Connection | None:
    try:
        return current_connection()
    except NoConnectionError:
        return None


class TestMagic:
    async def test_connects_binds_and_restores(self, app):
        assert bound() is None
        async with app.magic() as connection:
            assert bound() is connection is app.connection
            await Job("act").enqueue()
        assert bound() is None
        assert app.connection.is_open, "it disconnects only when asked to"
        await app.connection.disconnect()

    async def test_disconnects_when_asked_to_also_after_an_error(self, app):
        with pytest.raises(KeyError):
            async with app.magic(auto_disconnect=True):
                raise KeyError
        assert not app.connection.is_open
        assert bound() is None

    async def test_takes_a_connection_that_is_open_and_leaves_it_open(self, app):
        async with app.connection:
            async with app.magic():
                assert bound() is app.connection
            assert app.connection.is_open

    async def test_nested_the_inner_one_wins_and_the_outer_one_is_restored(self, app, other):
        async with app.magic(auto_disconnect=True):
            async with other.magic(auto_disconnect=True):
                assert bound() is other.connection
                async with app.magic():
                    assert bound() is app.connection
                assert bound() is other.connection
            assert bound() is app.connection
            await Job("act").enqueue()
        assert bound() is None

    async def test_one_that_cannot_connect_binds_nothing(self):
        class Away(InMemoryMessageBroker):
            async def connect(self) -> None:
                raise NotConnectedError("away")

        with pytest.raises(NotConnectedError, match="away"):
            async with Repid(Connection(Away())).magic():
                pass
        assert bound() is None

    @pytest.mark.parametrize("fails", [False, True])
    async def test_two_tasks_that_start_together_connect_once(self, fails):
        """Neither goes on before the brokers are open; if the one fails, the other tries itself."""
        begun, release, opened = asyncio.Event(), asyncio.Event(), 0

        class Slow(InMemoryMessageBroker):
            async def connect(self) -> None:
                nonlocal opened
                opened += 1
                begun.set()
                await release.wait()
                if fails and opened == 1:
                    raise NotConnectedError("away")
                await super().connect()

        app = Repid(Connection(Slow()))

        async def part() -> None:
            async with app.magic():
                await Job("act").enqueue()

        async with asyncio.timeout(5):
            tasks = [asyncio.create_task(part()) for _ in range(3)]
            await begun.wait()
            await asyncio.sleep(0)
            release.set()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors if error] == ([NotConnectedError] if fails else [])
        assert opened == 1 + fails
        await app.connection.disconnect()

    async def test_tasks_that_were_there_before_see_it(self, app):
        """A web handler sees what the application's start-up bound."""
        ready = asyncio.Event()

        async def handler() -> Connection | None:
            await ready.wait()
            return bound()

        task = asyncio.create_task(handler())
        fresh = asyncio.create_task(handler(), context=contextvars.Context())
        await asyncio.sleep(0)
        async with app.magic(auto_disconnect=True):
            ready.set()
            assert await task is await fresh is app.connection

    async def test_two_tasks_each_have_their_own(self, app, other):
        async def use(one: Repid, others: asyncio.Barrier) -> None:
            async with one.magic(auto_disconnect=True):
                await others.wait()
                assert bound() is one.connection
                await asyncio.create_task(child(one))
                await others.wait()
            await others.wait()
            assert bound() is None

        async def child(one: Repid) -> None:
            assert bound() is one.connection

        barrier = asyncio.Barrier(2)
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(use(app, barrier))
            group.create_task(use(other, barrier))

    async def test_a_task_that_outlives_it_takes_what_is_bound_then(self, app, other):
        release = asyncio.Event()

        async def late() -> Connection | None:
            await release.wait()
            return bound()

        async with other.magic(auto_disconnect=True):
            async with app.magic(auto_disconnect=True):
                task = asyncio.create_task(late())
            release.set()
            assert await task is other.connection

    def test_other_loops_and_threads_do_not_see_it(self, app):
        async def main() -> Connection | None:
            async with app.magic(auto_disconnect=True):
                return await asyncio.to_thread(lambda: asyncio.run(elsewhere()))

        async def elsewhere() -> Connection | None:
            return bound()

        assert asyncio.run(main()) is None

    def test_the_next_run_of_a_program_may_bind_it_again(self, app):
        async def main() -> None:
            async with app.magic(auto_disconnect=True):
                await Job("act").enqueue()

        asyncio.run(main())
        asyncio.run(main())

    def test_one_that_was_left_open_on_another_loop(self, app):
        async def main() -> None:
            async with app.magic():
                pass

        asyncio.run(main())
        with pytest.raises(WrongEventLoopError):
            asyncio.run(main())


class TestMagicConnect:
    async def test_until_magic_disconnect(self, app):
        assert await app.magic_connect() is app.connection
        assert bound() is app.connection
        await Job("act").enqueue()
        await app.magic_disconnect()
        assert bound() is None
        assert not app.connection.is_open

    async def test_what_start_up_bound_is_seen_by_tasks_with_contexts_of_their_own(self, app):
        start_up = asyncio.create_task(app.magic_connect(), context=contextvars.Context())
        await start_up
        assert bound() is app.connection
        await asyncio.create_task(app.magic_disconnect(), context=contextvars.Context())
        assert bound() is None

    async def test_restores_the_binding_before(self, app, other):
        await app.magic_connect()
        await other.magic_connect()
        assert bound() is other.connection
        await other.magic_disconnect()
        assert bound() is app.connection
        await app.magic_disconnect()

    async def test_out_of_order(self, app, other):
        await app.magic_connect()
        await other.magic_connect()
        await app.magic_disconnect()
        assert bound() is other.connection
        await other.magic_disconnect()
        assert bound() is None

    async def test_inside_magic(self, app, other):
        async with app.magic(auto_disconnect=True):
            await other.magic_connect()
            assert bound() is app.connection, "the context's goes before the loop's"
            await other.magic_disconnect()
            assert bound() is app.connection

    async def test_disconnecting_what_was_never_connected(self, app):
        await app.magic_disconnect()
        assert bound() is None


class TestNoConnection:
    async def test_says_what_to_do(self):
        said = r"no connection in reach: pass `connection=…`, or make the call inside `async with Repid\(connection\)\.magic"
        with pytest.raises(NoConnectionError, match=said):
            await Job("act").enqueue()
        with pytest.raises(NoConnectionError, match=said):
            await Queue().stats()

    def test_without_a_loop(self):
        with pytest.raises(NoConnectionError):
            current_connection()

    async def test_one_that_is_given_goes_before_the_one_in_reach(self, app, other):
        async with app.magic(auto_disconnect=True), other.connection:
            await Job("act", connection=other.connection).enqueue()
            assert (await Queue(connection=other.connection).stats()).ready == 1
            assert (await Queue().stats()).ready == 0

    @pytest.mark.parametrize("wrong", [None, "memory", InMemoryMessageBroker()])
    def test_an_app_of_something_else(self, wrong: Any):
        with pytest.raises(UsageError, match=r"Repid\(connection=…\) got .* and wants a Connection"):
            Repid(wrong)

    async def test_its_middlewares_are_the_connections(self, app):
        seen: list[str] = []

        def before_enqueue(queue: str) -> None:
            seen.append(queue)

        async with Repid(app.connection, middlewares=[before_enqueue]).magic(auto_disconnect=True):
            await Job("act").enqueue()
        assert seen == ["default"]
