"""`repid enqueue` and `repid result`."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest

from repid_core import Connection, Message, MessageCategory, Parameters, Priority, Queue, Worker
from repid_core.cli.jobs import enqueue, result
from repid_core.data import Outcome, Recurrence


async def take(connection: Connection) -> Message:
    messages = Queue("mail", connection=connection).get_messages()
    message = await anext(messages)
    await message.ack()
    await messages.aclose()  # type: ignore[attr-defined]
    return message


def test_it_enqueues_and_prints_the_id(shop):
    result = shop(
        "enqueue", "greet", "-q", "mail", "--args", '{"user_id": 1, "name": "Ä"}', "--priority", "high", "--retries", "3"
    )
    message = shop.do(take)
    assert (message.key.id_, message.key.topic, message.key.priority) == (result.stdout.strip(), "greet", Priority.HIGH)
    assert json.loads(message.raw_payload) == {"user_id": 1, "name": "Ä"}
    assert message.parameters.retries == 3


def test_a_delay_is_kept(shop):
    shop("enqueue", "greet", "-q", "mail", "--id", "late", "--delay", "2 hours")
    assert shop.ids(MessageCategory.DELAYED) == ["late"]


@pytest.mark.parametrize("way", ["-", "@arguments.json"])
def test_arguments_may_come_from_a_file_or_from_standard_input(shop, tmp_path, way):
    (tmp_path / "arguments.json").write_text("[1, 2]")
    shop("enqueue", "greet", "-q", "mail", "--args", way, input="[1, 2]")
    assert json.loads(shop.do(take).raw_payload) == [1, 2]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["greet", "--args", "{secret"], "Error: --args is not JSON: Expecting property name"),
        (["greet", "--args", "@nowhere.json"], "Error: --args @nowhere.json: No such file or directory"),
        (["9"], "Error: actor name '9' is not valid"),
        (["greet", "--queue", "9"], "queue name '9' is not valid"),
        (["greet", "--delay", "soon"], "'soon' is no duration: write for example '30 s'"),
        (["greet", "--id", "a b"], "Error: id_ 'a b' is not valid"),
        (["greet", "--every", "10 s", "--cron", "* * * * *"], "Error: --every and --cron: a job recurs by one of them"),
        (["greet", "--cron", "at noon"], "Error: cron line 'at noon' is not valid"),
        (["greet", "--timezone", "Europe/Berlin"], "Error: timezone='Europe/Berlin' is for cron lines"),
        (["greet", "--on-duplicate", "keep"], "Error: --on-duplicate keep needs an --id"),
        (["greet", "--id", "one", "--on-duplicate", "keep", "--wait"], "Error: --on-duplicate keep with --wait"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_sent(shop, words, text):
    result = shop("enqueue", *words, status=2)
    assert text in result.output
    assert "secret" not in result.output
    assert shop.json("queues") == []


def test_an_id_that_is_live_is_a_failure(shop):
    shop("enqueue", "greet", "-q", "mail", "--id", "one")
    assert "a job with id 'one' is ready already" in shop("enqueue", "greet", "-q", "mail", "--id", "one", status=1).output


def test_a_live_id_is_kept_or_replaced_as_asked(shop):
    shop("enqueue", "greet", "-q", "mail", "--id", "one", "--args", "[1]")
    again = ("enqueue", "greet", "-q", "mail", "--id", "one", "--args", "[2]")
    assert shop.json(*again, "--on-duplicate", "keep")["outcome"] == "kept"
    assert shop.json(*again, "--on-duplicate", "replace")["outcome"] == "replaced"
    assert json.loads(shop.do(take).raw_payload) == [2]


@pytest.mark.parametrize(
    ("words", "recurrence"),
    [
        (["--every", "1 hour"], (timedelta(hours=1), None, None)),
        (["--cron", "30 7 * * mon-fri", "--timezone", "Europe/Berlin"], (None, "30 7 * * mon-fri", "Europe/Berlin")),
    ],
)
def test_a_job_that_recurs_comes_again(shop, words, recurrence):
    async def seen(connection: Connection) -> Recurrence | None:
        [browsed] = [each async for each in connection.message_broker.browse("mail", MessageCategory.DELAYED)]
        return browsed.envelope.parameters.recurrence

    shop("enqueue", "greet", "-q", "mail", "--id", "again", *words)
    assert (found := shop.do(seen)) is not None
    assert (found.interval, found.cron, found.timezone) == recurrence


def test_json_has_its_shape(shop, fits):
    told = shop.json("enqueue", "greet", "-q", "mail", "--id", "one")
    assert fits(enqueue.shape, told)
    assert (told["id"], told["outcome"], told["queue"], told["result"]) == ("one", "new", "mail", None)
    assert told["result_id"] != "one"  # an older result may be there under it


def store(shop, id_: str, outcome: Outcome, value: object = None) -> None:
    async def work(connection: Connection) -> None:
        parameters = Parameters(connection.clock.now(), result_id=id_, result_ttl=timedelta(hours=1))
        await connection.payloads.store_result(parameters, outcome, value)

    shop.do(work)


def test_a_result_is_printed_as_json(shop, fits):
    store(shop, "good", Outcome(success=True, started_when=10**18, finished_when=10**18 + 1_500_000), {"ü": [1]})
    assert json.loads(shop("result", "good").stdout) == {"ü": [1]}
    told = shop.json("result", "good")
    assert fits(result.shape, told)
    assert told == {
        "id": "good",
        "found": True,
        "success": True,
        "data": {"ü": [1]},
        "exception": None,
        "traceback": None,
        "started": "2001-09-09T01:46:40+00:00",
        "duration_ms": 1.5,
    }


def test_a_failure_is_told_with_its_traceback(shop, fits):
    store(shop, "bad", Outcome(success=False, started_when=1, finished_when=2, exception="ValueError", traceback="Traceback\nno"))
    assert shop("result", "bad", status=1).stderr == "The job failed: ValueError\nTraceback\nno\n"
    assert fits(result.shape, shop.json("result", "bad", status=1))


def test_no_result_has_a_status_of_its_own(shop, fits):
    assert shop("result", "none", status=3).stderr.startswith("No result none: ")
    assert fits(result.shape, shop.json("result", "none", status=3))
    shop("result", "none", "--wait", "--wait-timeout", "10 ms", status=3)
    assert "result id 'a b' is not valid" in shop("result", "a b", status=2).output


def test_without_a_store_for_results_that_is_said_before_anything_is_sent(shop):
    shop("queues")
    (bare := shop.connection).results_bucket_broker = None
    object.__setattr__(bare.payloads, "results_broker", None)
    assert "has no results bucket broker" in shop("enqueue", "greet", "-q", "mail", "--wait", status=2).output
    assert shop.ids(MessageCategory.NORMAL) == []


def test_enqueue_can_wait_for_what_a_worker_does(shop, monkeypatch):
    """The worker shares the command's loop, for the brokers are in memory."""
    import shop as module

    from repid_core.cli import jobs

    on_connection = jobs.on_connection

    def with_worker(connect, work):
        async def both(connection):
            working = asyncio.create_task(Worker([module.router], messages_limit=1, handle_signals=()).run())
            try:
                return await work(connection)
            finally:
                await working

        return on_connection(connect, both)

    monkeypatch.setattr(jobs, "on_connection", with_worker)
    good = shop("enqueue", "greet", "-q", "mail", "--args", '[1, "Alex"]', "--wait")
    assert good.stdout.splitlines()[1] == '"Hello Alex, your id is 1."'
    bad = shop("enqueue", "greet", "-q", "mail", "--args", '["x"]', "--wait", "--json", status=1)
    assert json.loads(bad.stdout)["result"]["exception"] == "ConversionError"
