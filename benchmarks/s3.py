"""repid-s3 beside boto3 with its defaults in the same kind of threads, on a server that does nothing but answer.

    python benchmarks/s3.py

Both take turns within each round; what is printed is the median of the rounds' ratios, and the least and the most of them.
A store's time on a server that takes 30 ms is that of one store after another. Memory is the most that a process takes for one
store of 50 MiB. How late the event loop was is what a task that sleeps for 1 ms meanwhile has seen: of 100 wakings, the one
before the latest, and the latest of all; first ours, then boto3's, and what it is with nothing to do says what the machine adds.
What boto3 has read of descriptions is kept from Python's collector (`gc.freeze`), which else looks through it for 0.1 s. Threads
take turns as often as Python has them with boto3, and as repid-s3 has them with it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import multiprocessing
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import boto3

from repid_s3 import S3BucketBroker

SIZE = 1024
LARGE = 50 << 20
STATUS = Path("/proc/self/status")
LINUX = STATUS.exists()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """One connection."""
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
            lines = head.lower().split("\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
            if any(line.startswith("expect:") for line in lines):
                if delay:
                    await asyncio.sleep(delay)
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await reader.readexactly(length)
            if delay:
                await asyncio.sleep(delay)
            body = b"x" * SIZE if head.startswith("GET") else b""
            writer.write(b"HTTP/1.1 200 OK\r\nx-amz-meta-repid-format: 1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def serve(pipe: Connection, delay: float) -> None:
    """The server's process."""

    async def main() -> None:
        server = await asyncio.start_server(lambda reader, writer: answer(reader, writer, delay), "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def server(delay: float = 0) -> Any:
    """A server in a process of its own; its URL."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, delay), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


def session() -> Any:
    return boto3.Session(aws_access_key_id="a-key", aws_secret_access_key="a-secret", region_name="us-east-1")  # noqa: S106


class Raw:
    """boto3 by hand."""

    def __init__(self, url: str) -> None:
        self.client = session().client("s3", endpoint_url=url)
        self.threads = ThreadPoolExecutor(32)

    async def _run(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, call)

    async def store(self, name: str, data: bytes) -> None:
        await self._run(lambda: self.client.put_object(Bucket="bucket", Key=f"jobs/{name}", Body=data))

    async def get(self, name: str, _data: bytes) -> None:
        def read() -> Any:
            return self.client.get_object(Bucket="bucket", Key=f"jobs/{name}")["Body"].read()

        await self._run(read)

    async def close(self) -> None:
        await asyncio.to_thread(self.threads.shutdown)
        self.client.close()


class Ours:
    """repid-s3."""

    def __init__(self, url: str) -> None:
        self.broker = S3BucketBroker(f"s3://bucket/jobs/?endpoint_url={url}", session=session(), lifecycle="off")

    async def store(self, name: str, data: bytes) -> None:
        await self.broker.store_bucket(name, data, None)

    async def get(self, name: str, _data: bytes) -> None:
        await self.broker.get_bucket(name)

    async def close(self) -> None:
        await self.broker.disconnect()


class Lag:
    """How late the event loop comes, in ms."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    async def watch(self) -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            self.seen.append((time.perf_counter() - start - 0.001) * 1000)

    def __str__(self) -> str:
        ordered = sorted(self.seen)
        return f"{ordered[int(len(ordered) * 0.99)]:.0f}, {ordered[-1]:.0f}" if ordered else "–"


@contextlib.asynccontextmanager
async def watching(lag: Lag) -> AsyncIterator[None]:
    watch = asyncio.create_task(lag.watch())
    try:
        yield
    finally:
        watch.cancel()


async def measure(call: Callable[[str, bytes], Awaitable[None]], requests: int, concurrency: int) -> tuple[float, float]:
    """Requests per second, and processor time for each in µs."""
    numbers, data = iter(range(requests)), b"x" * SIZE

    async def work() -> None:
        for number in numbers:
            await call(f"b{number}", data)

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return requests / (time.perf_counter() - start), (time.process_time() - cpu) / requests * 1e6


async def compare(
    url: str, rounds: int, requests: int, concurrency: int, verb: str
) -> tuple[list[float], list[float], dict[object, Lag]]:
    """Ours to raw, by round: requests per second, and processor time; and how late the loop was with either."""
    ours, raw = Ours(url), Raw(url)
    intervals: dict[object, float] = {raw: sys.getswitchinterval()}
    await ours.broker.connect()
    intervals[ours] = sys.getswitchinterval()  # which the broker sets for the whole process
    late = {ours: Lag(), raw: Lag()}
    for each in (ours, raw):
        sys.setswitchinterval(intervals[each])
        await measure(getattr(each, verb), concurrency * 2, concurrency)
    gc.collect()
    gc.freeze()
    rates, costs = [], []
    for number in range(rounds):
        order = (ours, raw) if number % 2 else (raw, ours)
        found = {}
        for each in order:
            sys.setswitchinterval(intervals[each])
            async with watching(late[each]):
                found[each] = await measure(getattr(each, verb), requests, concurrency)
        rates.append(found[ours][0] / found[raw][0])
        costs.append(found[ours][1] / found[raw][1])
    sys.setswitchinterval(intervals[ours])
    await ours.close()
    await raw.close()
    return rates, costs, late


def peak() -> int:
    """The most memory that this process has taken, in kB."""
    return int(next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")))


async def store_large(who: str, url: str) -> None:
    """One store of 50 MiB, in a process of its own; prints the most memory that it has taken, in kB."""
    each = Ours(url) if who == "ours" else Raw(url)
    if isinstance(each, Ours):
        await each.broker.connect()
    await each.store("large", b"x" * LARGE)
    await each.close()
    print(peak())


async def memory(url: str) -> float:
    """Ours to raw."""
    taken = []
    for who in ("ours", "raw"):
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--large", who, url, stdout=asyncio.subprocess.PIPE
        )
        taken.append(int((await process.communicate())[0]))
    return taken[0] / taken[1]


async def idle() -> Lag:
    """How late the loop is with nothing to do."""
    lag = Lag()
    async with watching(lag):
        await asyncio.sleep(2)
    return lag


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000, help="for one measurement")
    parser.add_argument("--large", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.large:
        await store_large(*options.large)
        return
    print(f"boto3 {boto3.__version__}, Python {sys.version.split()[0]}; 1 KiB, repid-s3 to boto3, median of {options.rounds}\n")
    print("| | requests/s ↑ | CPU/request ↓ | ms late: ours | boto3 |\n|---|--:|--:|--:|--:|")
    with server() as url:
        for verb in ("store", "get"):
            for concurrency in (1, 16, 64):
                rates, costs, late = await compare(url, options.rounds, options.requests, concurrency, verb)
                lags = " | ".join(map(str, late.values()))
                print(f"| {verb}, {concurrency} at once | {spread(rates)} | {spread(costs)} | {lags} |", flush=True)
        if LINUX:
            print(f"| store of 50 MiB, memory ↓ | {await memory(url):.2f} | | | |", flush=True)
    with server(0.03) as url:
        rates, _, _ = await compare(url, options.rounds, max(1, options.requests // 50), 1, "store")
        print(f"| store, time on a server that takes 30 ms ↓ | {spread([1 / rate for rate in rates])} | | | |", flush=True)
        rates, costs, late = await compare(url, options.rounds, options.requests, 64, "store")
        lags = " | ".join(map(str, late.values()))
        print(f"| store, 64 at once, on that server | {spread(rates)} | {spread(costs)} | {lags} |", flush=True)
    print(f"| nothing | | | {await idle()} | |")


if __name__ == "__main__":
    asyncio.run(main())
