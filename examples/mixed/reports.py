"""Three stores behind one connection, chosen by repid.toml beside this file; the code names none of them.

REPORTS_BUCKET=my-bucket python reports.py
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from repid_core import Connection, Job, Repid, Router, Worker

router = Router()


@router.actor(queue="reports")
async def most_frequent(text: str, words: int) -> dict[str, int]:
    return dict(Counter(text.split()).most_common(words))


async def main() -> None:
    connection = Connection.from_config(Path(__file__).with_name("repid.toml"))
    async with Repid(connection).magic(auto_disconnect=True):
        small = Job.of(most_frequent)("to be or not to be", words=2)
        large = Job.of(most_frequent)("spam " * 20_000 + "egg " * 10_000, words=1)  # too large for a message
        await connection.enqueue_many([small, large])
        await Worker([router], messages_limit=2).run()
        for job in (small, large):
            print(await job.wait(timeout=30))
    for part in (connection.message_broker, connection.args_bucket_broker, connection.results_bucket_broker):
        print(type(part).__name__)


if __name__ == "__main__":
    asyncio.run(main())
