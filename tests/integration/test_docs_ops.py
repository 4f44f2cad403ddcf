"""What the pages for operators say: manifests, probes, signals, rights, policies and alerts, on real servers and real workers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from attrs import field, frozen

from repid_core import Connection, Job, MessageCategory, Queue, Router, Worker
from repid_core.cli.supervisor import _MARGIN
from repid_core.config import load
from repid_core.errors import EnqueueError, MessageBrokerError, UnsupportedFeatureError
from tests.integration.test_docs import ROOT, Block, blocks, files_of

pytestmark = [pytest.mark.examples, pytest.mark.skipif(sys.platform == "win32", reason="signals")]

KUBERNETES, SECRETS, RABBITMQ, REDIS, S3, OBSERVABILITY = (
    ROOT / "docs" / "how-to" / f"{name}.md"
    for name in (
        "deploy-on-kubernetes",
        "secrets",
        "rabbitmq-clusters",
        "redis-sentinel-and-cluster",
        "s3-policies",
        "observability",
    )
)
SECRET = "a-secret"  # noqa: S105
PATIENCE = 50.0  # seconds


def of_language(page: Path, language: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == language]


def block_with(page: Path, text: str) -> str:
    [code] = [block.code for block in blocks(page) if text in block.code]
    return code


def helpers(plugin: str) -> Any:
    """The module by which a plugin's own tests start servers."""
    file = ROOT / "plugins" / plugin / "tests" / "servers.py"
    spec = importlib.util.spec_from_file_location(f"servers_of_{plugin.replace('-', '_')}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


def lacking(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"{what} is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(true: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (value := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return value


def environment(**variables: str) -> dict[str, str]:
    """This process's, with the `repid` command of this Python first, and nothing of repid's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPID_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **variables}


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Redis of this module's own, which asks for a password."""
    servers = helpers("repid-redis")
    if (binary := servers.any_binary()) is None:
        lacking("redis-server")
    server = servers.Server(binary, tmp_path_factory.mktemp("redis"), requirepass=SECRET)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def rabbitmq_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    servers = helpers("repid-rabbitmq")
    if servers.binary("rabbitmq-server") is None:
        lacking("rabbitmq-server")
    node = servers.Node(tmp_path_factory.mktemp("rabbitmq"))
    try:
        yield node.start()
    finally:
        node.stop()


# -- Kubernetes --------------------------------------------------------------------------------------------------------------


@frozen
class Manifests:
    """The page's application and manifests, as Kubernetes would make a pod of them, with ports that are free here."""

    place: Path
    documents: dict[str, Any]
    variables: dict[str, str]
    workers: list[subprocess.Popen[str]] = field(factory=list)

    @property
    def pod(self) -> dict[str, Any]:
        found: dict[str, Any] = self.documents["deployment.yaml"]["spec"]["template"]["spec"]
        return found

    @property
    def container(self) -> dict[str, Any]:
        [found] = self.pod["containers"]
        return dict(found)

    def port(self, name: str) -> int:
        [found] = [port["containerPort"] for port in self.container["ports"] if port["name"] == name]
        return int(found)

    def probe(self, kind: str) -> int:
        """What the kubelet would be told; 0 if nobody listens."""
        asked = self.container[kind]["httpGet"]
        return status_of(f"http://127.0.0.1:{self.port(asked['port'])}{asked['path']}")

    def start(self, *more: str, **variables: str) -> subprocess.Popen[str]:
        command = [*self.container["args"], *more]
        assert command[0] == "repid"
        process = subprocess.Popen(
            [sys.executable, "-m", "repid_core", *command[1:]],
            cwd=self.place,
            env=environment(**{**self.variables, **variables}),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.workers.append(process)
        return process

    def connection(self) -> Connection:
        return Connection.from_config(self.variables["REPID_CONFIG"], environ=self.variables)


def status_of(url: str) -> int:
    try:
        with urlopen(url, timeout=5) as response:  # noqa: S310 — it is http
            return int(response.status)
    except HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def manifests(redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manifests]:
    yaml, place = pytest.importorskip("yaml"), tmp_path_factory.mktemp("srv")
    changes = {
        "8080": str(free_port()),
        "9464": str(free_port()),
        "redis://redis:6379/0": redis_server.url.replace(f":{SECRET}@", ""),
        "/etc/shop": str(place / "etc"),
    }
    files = {}
    for name, text in files_of(KUBERNETES).items():
        for old, new in changes.items():
            text = text.replace(old, new)  # noqa: PLW2901
        files[name] = text
    documents = {name: yaml.safe_load(text) for name, text in files.items() if name.endswith(".yaml")}
    for name, text in files.items():
        if name.endswith(".py"):
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(text, "utf-8")
    found = Manifests(place, documents, {})
    secret, config = documents["secret.yaml"], documents["configmap.yaml"]
    secret["stringData"] = dict.fromkeys(secret["stringData"], SECRET)
    [volume] = found.pod["volumes"]
    [mount] = found.container["volumeMounts"]
    assert (volume["name"], volume["configMap"]["name"]) == (mount["name"], config["metadata"]["name"])
    for name, text in config["data"].items():
        Path(mount["mountPath"]).mkdir(exist_ok=True)
        Path(mount["mountPath"], name).write_text(text, "utf-8")
    for variable in found.container["env"]:
        if (value := variable.get("value")) is None:
            asked = variable["valueFrom"]["secretKeyRef"]
            assert asked["name"] == secret["metadata"]["name"]
            value = secret["stringData"][asked["key"]]
        found.variables[variable["name"]] = value
    try:
        yield found
    finally:
        for process in found.workers:
            if process.returncode is None:
                process.kill()
                process.communicate()


@pytest.fixture(scope="module")
def scrape(manifests: Manifests) -> Iterator[Callable[[], str]]:
    """The worker of the deployment at work; what its metrics say."""
    process = manifests.start()
    eventually(lambda: process.poll() is not None or manifests.probe("startupProbe") == 200, "it does not start")
    assert process.poll() is None, process.communicate()[1]

    def read() -> str:
        with urlopen(f"http://127.0.0.1:{manifests.port('metrics')}/metrics", timeout=5) as response:
            return str(response.read().decode())

    yield read
    process.kill()
    process.communicate()


async def test_the_worker_of_the_deployment_answers_its_probes_and_ends_as_the_page_says(manifests: Manifests) -> None:
    process = manifests.start()
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        eventually(lambda kind=kind: process.poll() is not None or manifests.probe(kind) == 200, kind)  # type: ignore[misc]
    assert process.poll() is None, process.communicate()[1]
    health = f"http://127.0.0.1:{manifests.port('health')}"
    assert (status_of(f"{health}/healthz"), status_of(f"{health}/nothing")) == (200, 404)

    async with manifests.connection() as connection:
        job = Job("send", queue="mail", args={"to": "kim", "seconds": 2.0}, connection=connection)
        await job.enqueue()
        while (await connection.message_broker.queue_stats("mail")).in_progress != 1:
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        eventually(lambda: manifests.probe("readinessProbe") == 503, "it is still ready")
        assert manifests.probe("livenessProbe") == 200
        _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, log
        assert await job.wait(timeout=5) == "sent to kim"
        assert '"message": "waiting for 1 running jobs"' in log


async def test_what_outlasts_the_grace_goes_back_and_counts_for_nothing(manifests: Manifests) -> None:
    process = manifests.start("--grace", "0.1")
    async with manifests.connection() as connection:
        await Job("send", queue="mail", args={"to": "kim", "seconds": 600.0}, connection=connection).enqueue()
        while (await connection.message_broker.queue_stats("mail")).in_progress != 1:
            assert process.poll() is None
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, log
        stats = await connection.message_broker.queue_stats("mail")
        assert (stats.ready, stats.in_progress, stats.delayed, stats.dead) == (1, 0, 0, 0)
        await connection.message_broker.delete_queue("mail")


def test_a_service_that_is_called_like_a_setting_is_status_2_and_named(manifests: Manifests) -> None:
    process = manifests.start(REPID_MESSAGE_BROKER_SERVICE_HOST="10.0.0.1")
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "REPID_MESSAGE_BROKER_SERVICE_HOST" in log
    assert manifests.pod["enableServiceLinks"] is False


def test_a_broker_that_is_away_at_the_start_is_status_1(manifests: Manifests) -> None:
    process = manifests.start(
        REPID_MESSAGE_BROKER__URL=f"redis://127.0.0.1:{free_port()}", REPID_MESSAGE_BROKER__CONNECT_TIMEOUT="1 s"
    )
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, log
    assert SECRET not in log


def test_the_numbers_of_the_deployment_are_as_the_page_reckons(manifests: Manifests) -> None:
    args = manifests.container["args"]
    grace = float(args[args.index("--grace") + 1])
    assert _MARGIN == 15
    assert "`terminationGracePeriodSeconds` ≥ `preStop` + `--grace` + 15 s" in KUBERNETES.read_text("utf-8")
    assert manifests.pod["terminationGracePeriodSeconds"] >= grace + _MARGIN
    assert manifests.container["startupProbe"]["periodSeconds"] * manifests.container["startupProbe"]["failureThreshold"] == 60
    assert manifests.container["livenessProbe"]["periodSeconds"] * manifests.container["livenessProbe"]["failureThreshold"] == 120
    command = json.loads(re.findall(r"^CMD (\[.*\])$", block_with(KUBERNETES, "FROM python"), re.MULTILINE)[0])
    assert args[: len(command)] == command


def test_the_manifests_belong_together(manifests: Manifests) -> None:
    deployment = manifests.documents["deployment.yaml"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert manifests.documents["pdb.yaml"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert int(annotations["prometheus.io/port"]) == manifests.port("metrics")
    for name in ("keda-prometheus.yaml", "keda-rabbitmq.yaml"):
        assert manifests.documents[name]["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_the_manifests_fit_the_schemas_of_kubernetes(manifests: Manifests) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for name, document in manifests.documents.items():
        if not document["apiVersion"].startswith("keda.sh/"):
            assert validate.validate(document, "1.30", strict=True), name


def test_the_queue_that_keda_looks_at_is_that_of_the_broker(manifests: Manifests) -> None:
    from repid_rabbitmq import RabbitMessageBroker

    [trigger] = manifests.documents["keda-rabbitmq.yaml"]["spec"]["triggers"]
    broker = RabbitMessageBroker("amqp://localhost", prefix="shop")
    assert broker.topology.names("mail").mains == [trigger["metadata"]["queueName"]]


# -- metrics, logs and traces ------------------------------------------------------------------------------------------------


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The metrics of repid in a query, and what it wants of their labels."""
    for name, _, wanted in re.findall(r"\b(repid_\w+)(\{([^}]*)\})?", expression):
        yield name, dict(re.findall(r'(\w+)=~?"([^"]*)"', wanted))


def test_alerts_and_queries_ask_for_metrics_and_labels_that_there_are(manifests: Manifests, scrape: Callable[[], str]) -> None:
    yaml = pytest.importorskip("yaml")
    alerts = yaml.safe_load(files_of(OBSERVABILITY)["repid-alerts.yaml"])
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    assert len(rules) == len({rule["alert"] for rule in rules}) > 5
    queries = [rule["expr"] for rule in rules]
    queries += [trigger["metadata"]["query"] for trigger in manifests.documents["keda-prometheus.yaml"]["spec"]["triggers"]]
    for page in (OBSERVABILITY, KUBERNETES):
        queries += re.findall(r"`([^`\n]*repid_(?:job|queue)[^`\n]*)`", page.read_text("utf-8"))
    labels = labels_of(scrape())
    states = {"ready", "in_progress", "delayed", "dead"}
    outcomes = {"succeeded", "failed", "retried", "expired", "invalid", "nacked", "rejected", "lost"}
    asked = [found for query in queries for found in selectors(query)]
    assert len(asked) > 15
    for name, wanted in asked:
        known = labels.get(name)
        assert known is not None, f"there is no metric {name}; there are {sorted(labels)}"
        assert wanted.keys() <= known | {"queue"}, (name, wanted)
        for label, values in (("state", states), ("outcome", outcomes)):
            assert set(wanted[label].split("|")) <= values if label in wanted else True, (name, wanted)
    for query in queries:
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
            known = set().union(*(labels[name] for name, _ in selectors(query)))
            assert set(re.split(", ?", grouped)) <= known, query


def labels_of(scraped: str) -> dict[str, set[str]]:
    """All metrics that a worker has, with their labels: those without a value yet have a type and no line."""
    from prometheus_client import CollectorRegistry

    from repid_prometheus.metrics import Metrics
    from repid_prometheus.settings import PrometheusSettings

    registry = CollectorRegistry()
    metrics = Metrics(registry, PrometheusSettings())
    found: dict[str, set[str]] = {}
    for family in vars(metrics).values():
        metric = getattr(family, "_metric", None)
        if metric is not None:
            kind = type(metric).__name__
            name = f"{metric._name}{'_total' if kind == 'Counter' else ''}"
            assert re.search(rf"^# TYPE {name} ", scraped, re.MULTILINE), name
            found[name] = set(metric._labelnames)
            if kind == "Histogram":
                found[f"{name}_bucket"] = {*metric._labelnames, "le"}
    return found


async def test_the_depth_by_which_keda_scales_is_scraped(manifests: Manifests, scrape: Callable[[], str]) -> None:
    def depths() -> set[str]:
        return set(re.findall(r'^repid_queue_messages\{queue="mail",state="(\w+)"\} \S+$', scrape(), re.MULTILINE))

    assert eventually(lambda: depths() == {"ready", "in_progress", "delayed", "dead"}, "no depths")


def test_a_check_without_prometheus(manifests: Manifests, scrape: Callable[[], str]) -> None:
    command = [sys.executable, "-c", files_of(OBSERVABILITY)["check_queue.py"], "mail", "10"]
    done = subprocess.run(
        command, env=environment(**manifests.variables), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (0, "mail: 0 ready, 0 dead\n"), done.stderr


async def test_the_loggers_of_the_page_are_there_and_lines_about_jobs_have_its_fields(manifests: Manifests) -> None:
    for name in re.findall(r"^\| (`repid.*?) \|", OBSERVABILITY.read_text("utf-8"), re.MULTILINE):
        for logger in re.findall(r"`([\w.]+?)(?:\.…)?`", name):
            if logger.startswith("repid_") and "_messages" not in logger and "_jobs_" not in logger and "_job_" not in logger:
                assert importlib.util.find_spec(logger) is not None, logger
    [program] = [block.code for block in blocks(OBSERVABILITY) if "class JobFields" in block.code]
    (manifests.place / "shop" / "running.py").write_text(program.partition("@router.actor")[0], "utf-8")
    (manifests.place / "shop" / "logs.py").write_text(files_of(OBSERVABILITY)["shop/logs.py"], "utf-8")
    (manifests.place / "logging_worker.py").write_text(
        "import logging\n\nfrom repid_core import Repid, Connection, Router, Worker\nfrom shop import logs, running\n\n"
        "router = Router()\n\n\n@router.actor(queue='mail')\nasync def greet(name: str) -> None:\n"
        "    logging.getLogger('shop').warning('about to greet')\n    raise ValueError(name)\n\n\n"
        "def connection() -> Connection:\n    found = Connection.from_config()\n"
        "    found.middleware.add(running.around_actor_run)\n    return found\n\n\n"
        "worker = Worker([router], messages_limit=1)\n",
        "utf-8",
    )
    async with manifests.connection() as connection:
        await Job("greet", queue="mail", args=["kim"], id_="welcome-7", connection=connection).enqueue()
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "repid_core", "worker", "logging_worker:worker", "--app", "logging_worker:connection",
             "--log-format", "json"],
            cwd=manifests.place, env=environment(**manifests.variables), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        await connection.message_broker.delete_queue("mail")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    [mine] = [line for line in lines if line["logger"] == "shop"]
    assert {"job": "welcome-7", "actor": "greet", "queue": "mail"}.items() <= mine.items()
    [shown] = of_language(OBSERVABILITY, "json")
    wanted = json.loads(shown.code)
    [failed] = [line for line in lines if line["message"] == wanted["message"]]
    assert failed.keys() == wanted.keys()
    for key in ("level", "logger", "actor", "queue", "attempt"):
        assert failed[key] == wanted[key]


def test_the_traces_are_set_up_as_the_page_shows(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    (tmp_path / "telemetry.py").write_text(files_of(OBSERVABILITY)["shop/telemetry.py"], "utf-8")
    program = """
import asyncio
from telemetry import set_up
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry import trace
from repid_core import Connection, Job, Repid, Router, Worker

spans = InMemorySpanExporter()
provider = set_up(spans)
router = Router()

@router.actor(queue="mail")
async def greet(): ...

async def main():
    connection = Connection.from_config({"message_broker": "memory", "middlewares": ["opentelemetry"]}, environ={})
    async with Repid(connection).magic(auto_disconnect=True):
        for number in range(200):
            with trace.get_tracer("shop").start_as_current_span("request"):
                await Job("greet", queue="mail").enqueue()
        await Worker([router], messages_limit=200).run()

asyncio.run(main())
provider.shutdown()
whole = {}
for span in spans.get_finished_spans():
    whole.setdefault(span.context.trace_id, set()).add(span.name)
print(0 < len(whole) < 200, *{tuple(sorted(names)) for names in whole.values()})
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout == "True ('enqueue mail', 'process mail', 'request')\n", done.stderr


# -- secrets and rights ------------------------------------------------------------------------------------------------------


def test_the_secrets_come_from_where_the_page_puts_them(tmp_path: Path) -> None:
    files = files_of(SECRETS)
    (tmp_path / "password").write_text("from the file\n", "utf-8")
    text = files["etc/repid.toml"].replace("/run/secrets/redis-password", str(tmp_path / "password"))
    found = load(tomllib.loads(text), {"RABBITMQ_PASSWORD": "from the environment"})
    assert found.sections["message_broker"].settings.target.password == "from the environment"  # noqa: S105
    assert found.sections["results_bucket_broker"].settings.password == "from the file"  # noqa: S105
    variables = dict(line.split("=", 1) for line in block_with(SECRETS, "# worker.env").splitlines()[1:])
    settings = load(None, variables).sections["message_broker"].settings if not _configured() else None
    assert settings is None or (settings.username, settings.password) == ("shop", SECRET)
    space: dict[str, Any] = {"__name__": "connection"}
    exec(compile(files["shop/connection.py"], "connection.py", "exec"), space)  # noqa: S102
    assert space["connection"]().message_broker.settings.password == SECRET


def _configured() -> bool:
    """Whether a file of this machine would be found."""
    return any((folder / "repid.toml").exists() for folder in (Path.cwd(), *Path.cwd().parents))


@pytest.mark.parametrize("binary", ["redis_binary", "valkey_binary"])
async def test_the_rights_of_the_page_are_enough_for_redis_and_not_for_more(binary: str, tmp_path: Path) -> None:
    import redis

    from repid_redis import RedisBucketBroker, RedisMessageBroker

    servers = helpers("repid-redis")
    if (program := getattr(servers, binary)()) is None:
        lacking(binary)
    server = servers.Server(program, tmp_path / "server").start()
    try:
        with server.client() as client:
            [rule] = of_language(SECRETS, "redis")
            client.execute_command(*shlex.split(rule.code.strip()))
        url = f"redis://shop:{SECRET}@127.0.0.1:{server.port}/0"
        broker, buckets = RedisMessageBroker(url, prefix="shop"), RedisBucketBroker(url, prefix="shop")
        async with Connection(broker, buckets, buckets) as connection:
            await everything(connection)
        for forbidden in (["FLUSHALL"], ["FLUSHDB"], ["CONFIG", "GET", "requirepass"], ["GET", "other:key"], ["KEYS", "*"],
                          ["ACL", "LIST"], ["SET", "other:key", "1"]):  # fmt: skip
            with (
                redis.Redis("127.0.0.1", server.port, username="shop", password=SECRET) as client,
                pytest.raises(redis.exceptions.NoPermissionError),
            ):
                client.execute_command(*forbidden)
    finally:
        server.stop()


async def everything(connection: Connection) -> None:
    """What an application and an operator do with brokers."""
    broker, queue = connection.message_broker, Queue("mail", connection=connection)
    router, ran = Router(), []

    @router.actor(queue="mail", retry_policy=lambda attempt, error: timedelta(seconds=0.01))
    async def work(number: int) -> int:
        ran.append(number)
        if number < 0 and ran.count(number) < 3:
            raise ValueError(number)
        return number

    async def run(deliveries: int) -> None:
        worker = Worker([router], messages_limit=deliveries, connection=connection, handle_signals=())
        await worker.run()

    keep = connection.results_bucket_broker is not None
    await broker.ping()
    jobs = [Job("work", "mail", args={"number": n}, connection=connection, store_result=keep) for n in range(5)]
    await connection.enqueue_many(jobs)
    await Job("work", "mail", args={"number": -1}, retries=1, connection=connection, store_result=keep).enqueue()
    later = Job("work", "mail", args={"number": 9}, deferred_by=timedelta(days=1), connection=connection)
    await later.enqueue()
    await run(7)
    assert sorted(ran) == [-1, -1, 0, 1, 2, 3, 4]
    if keep:
        assert await jobs[3].wait(timeout=5) == 3
    async for message in queue.get_messages(category=MessageCategory.DEAD):
        await message.reschedule()
        break
    await run(1)
    assert ran.count(-1) == 3
    with contextlib.suppress(UnsupportedFeatureError):
        assert [found async for found in broker.browse("mail", MessageCategory.DELAYED)]
        assert "mail" in (await broker.queue_names() or ["mail"])
    with contextlib.suppress(UnsupportedFeatureError):
        await later.cancel()
    await queue.stats()
    await queue.flush()
    await broker.delete_queue("mail")


def test_the_docs_of_the_plugin_and_the_page_name_the_same_rights() -> None:
    from repid_redis.errors import RIGHTS

    [rule] = of_language(SECRETS, "redis")
    assert rule.code.strip().endswith(RIGHTS.replace("PREFIX", "shop"))


async def test_the_rights_of_the_page_are_enough_for_rabbitmq_and_not_for_more(rabbitmq_node: Any) -> None:
    from repid_rabbitmq import RabbitMessageBroker

    for line in block_with(SECRETS, "rabbitmqctl add_user").splitlines():
        rabbitmq_node.ctl(*shlex.split(line)[1:])
    url = f"amqp://shop:{SECRET}@127.0.0.1:{rabbitmq_node.port}/"
    async with Connection(RabbitMessageBroker(url, prefix="shop")) as connection:
        await everything(connection)
    async with Connection(RabbitMessageBroker(url, prefix="other")) as connection:
        with pytest.raises(MessageBrokerError, match="access"):
            await connection.message_broker.declare_queue("mail", ["work"])
    assert not [name for name in rabbitmq_node.queues() if name.startswith("other")]


# -- RabbitMQ ----------------------------------------------------------------------------------------------------------------


async def test_what_is_made_and_how_one_gets_from_classic_to_quorum(rabbitmq_node: Any, tmp_path: Path) -> None:
    from repid_rabbitmq import RabbitMessageBroker

    async def send(prefix: str, queue_type: Any) -> None:
        async with Connection(RabbitMessageBroker(rabbitmq_node.url, prefix=prefix, queue_type=queue_type)) as connection:
            await connection.message_broker.declare_queue("mail", ["work"])
            if queue_type == "classic":  # delays are the same with both, and take long to make
                await Job("work", "mail", deferred_by=timedelta(hours=1), connection=connection).enqueue()

    await send("shop", "classic")
    await send("shop2", "quorum")
    made = rabbitmq_node.queues()
    delays = {f"delay:{bit:02}": "quorum" for bit in range(25)}
    for prefix, wanted in (
        ("shop.v1:mail", {"": "classic", "dead": "classic", **delays}),
        ("shop2.v1:mail", {"high": "quorum", "": "quorum", "low": "quorum", "dead": "quorum"}),
    ):
        assert {name: each["type"] for name, each in made.items() if name.startswith(prefix)} == {
            f"{prefix}:{part}".removesuffix(":"): kind for part, kind in wanted.items()
        }
    with pytest.raises(MessageBrokerError, match="perhaps of another queue_type"):
        await send("shop", "quorum")
    with pytest.raises(MessageBrokerError, match="perhaps of another queue_type"):
        await send("shop2", "classic")
    assert rabbitmq_node.queues().keys() == made.keys()

    (tmp_path / "retire.py").write_text(files_of(RABBITMQ)["retire.py"], "utf-8")
    (tmp_path / "repid.toml").write_text(
        f'[message_broker]\nurl = "{rabbitmq_node.url}"\nprefix = "shop2"\nqueue_type = "quorum"\n'
    )
    [shown] = [block.code for block in of_language(RABBITMQ, "console")]
    command, said = shown.removeprefix("$ ").splitlines()
    *assignments, _, _, queue = shlex.split(command)
    variables = dict(word.split("=", 1) for word in assignments)

    def retire() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "retire.py", queue], cwd=tmp_path, env=environment(**variables), capture_output=True,
            text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    full = retire()
    assert full.returncode == 1
    assert "mail is not empty" in full.stderr
    async with Connection(RabbitMessageBroker(rabbitmq_node.url, prefix="shop")) as connection:
        await connection.message_broker.flush_queue("mail")
    assert retire().stdout.strip() == said
    left = rabbitmq_node.queues()
    assert not [name for name in left if name.startswith("shop.v1:")]
    async with Connection(RabbitMessageBroker(rabbitmq_node.url, prefix="shop2", queue_type="quorum")) as connection:
        await connection.message_broker.delete_queue("mail")


async def test_what_policies_do(rabbitmq_node: Any) -> None:
    """That of the page reaches the dead alone; a delivery-limit loses messages, as the page warns."""
    from repid_rabbitmq import RabbitMessageBroker

    words = shlex.split(block_with(RABBITMQ, "set_policy"))
    rabbitmq_node.ctl(*words[1:])
    rabbitmq_node.ctl("set_policy", "limit", r"^shop\.v1:limited$", '{"delivery-limit": 1}', "--apply-to", "queues")
    broker = RabbitMessageBroker(rabbitmq_node.url, prefix="shop", queue_type="quorum")
    async with Connection(broker) as connection:
        await Job("work", "limited", connection=connection).enqueue()
        consumer = broker.consumer("limited", ["work"], prefetch=1)
        await consumer.start()
        for _ in range(2):
            [delivery] = await consumer.receive(1)
            await delivery.reject()
        eventually(lambda: rabbitmq_node.queues()["shop.v1:limited"]["messages"] == 0, "it is still there")
        await consumer.close()
        told = json.loads(rabbitmq_node.ctl("list_queues", "--formatter", "json", "name", "policy"))
        assert {each["name"]: each["policy"] for each in told if each["name"].startswith("shop.v1:limited")} == {
            "shop.v1:limited": "limit", "shop.v1:limited:high": "", "shop.v1:limited:low": "",
            "shop.v1:limited:dead": "shop-dead",
        }  # fmt: skip
        await broker.delete_queue("limited")


# -- Redis -------------------------------------------------------------------------------------------------------------------


async def test_a_fail_over_as_the_page_tries_it(tmp_path: Path) -> None:
    servers = helpers("repid-redis")
    if (binary := servers.redis_binary()) is None:
        lacking("redis-server")
    sentinels = servers.Sentinels(binary, tmp_path)
    try:
        sentinels.start()
        section = {**tomllib.loads(files_of(REDIS)["repid.toml"])["message_broker"], "url": sentinels.url}
        for secret in ("username", "password", "sentinel_password"):
            del section[secret]
        _, _, port, *order = shlex.split(block_with(REDIS, "SENTINEL FAILOVER"))
        assert port == "26379"
        async with Connection.from_config({"message_broker": section}, environ={}) as connection:
            await Job("work", connection=connection).enqueue()
            with sentinels.sentinels[0].client() as client:
                client.execute_command(*order)

            def is_primary() -> bool:
                with sentinels.replica.client() as client:
                    return client.role()[0] in (b"master", "master")

            eventually(is_primary, "no fail-over")
            sentinels.primary.kill()  # it would take jobs until the sentinels have made a replica of it, and then forget them
            with pytest.raises(EnqueueError, match="0 of the 1 replicas") as caught:
                await Job("work", connection=connection).enqueue()
            assert caught.value.maybe_enqueued
            assert (await connection.message_broker.queue_stats("default")).ready == 2
    finally:
        sentinels.stop()


async def test_the_servers_settings_of_the_page(tmp_path: Path) -> None:
    """They are known to the server, and a primary without replicas takes nothing."""
    from repid_redis import RedisMessageBroker

    servers = helpers("repid-redis")
    if (binary := servers.any_binary()) is None:
        lacking("redis-server")
    lines = [line.split(" ", 1) for line in block_with(REDIS, "# redis.conf").splitlines()[1:]]
    server = servers.Server(binary, tmp_path, **{name.replace("-", "_"): value for name, value in lines}).start()
    try:
        async with Connection(RedisMessageBroker(server.url)) as connection:
            with pytest.raises(MessageBrokerError, match="NOREPLICAS"):
                await Job("work", connection=connection).enqueue()
            with server.client() as client:
                client.config_set("min-replicas-to-write", "0")
            await Job("work", connection=connection).enqueue()
    finally:
        server.stop()


async def test_what_is_delayed_on_redis_stays_so_without_a_worker(redis_server: Any) -> None:
    from repid_redis import RedisMessageBroker

    async with Connection(RedisMessageBroker(redis_server.url, prefix=uuid.uuid4().hex)) as connection:
        await Job("work", deferred_until=datetime.now(UTC) + timedelta(milliseconds=20), connection=connection).enqueue()
        await asyncio.sleep(0.2)  # longer than the delay: nothing is to happen
        stats = await connection.message_broker.queue_stats("default")
        assert (stats.ready, stats.delayed) == (0, 1)
        await connection.message_broker.delete_queue("default")


# -- S3 ----------------------------------------------------------------------------------------------------------------------


def policies() -> list[dict[str, Any]]:
    return [json.loads(block.code) for block in of_language(S3, "json")]


def allowed(policy: Mapping[str, Any]) -> set[str]:
    return {action for statement in policy["Statement"] if statement["Effect"] == "Allow" for action in statement["Action"]}


def test_the_policies_name_the_actions_that_the_plugin_names() -> None:
    from repid_s3.errors import _RIGHTS

    needed = {action for text in _RIGHTS.values() for action in re.findall(r"s3:\w+", text)}
    found = policies()
    worker, operator = found[0], found[1]
    assert allowed(worker) | allowed(operator) == needed
    assert allowed(worker) == needed - {"s3:PutLifecycleConfiguration"}
    rows = set(re.findall(r"^\| `(s3:\w+)` \|", S3.read_text("utf-8"), re.MULTILINE))
    assert rows == needed
    for policy in found:
        assert policy["Version"] == "2012-10-17"
        for statement in policy["Statement"]:
            objects = [resource for resource in _listed(statement["Resource"]) if resource.endswith("*")]
            of_objects = {action for action in _listed(statement["Action"]) if "Object" in action}
            assert bool(objects) == bool(of_objects) or "s3:*" in _listed(statement["Action"]), statement["Sid"]


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_the_conditions_of_the_pages_bucket_policy() -> None:
    """All but TLS is refused; no policy limits listing by prefix, which would refuse what is asked about a bucket."""
    for policy in policies():
        for statement in policy["Statement"]:
            condition = statement.get("Condition", {})
            assert not any("s3:prefix" in keys for keys in condition.values())
            assert bool(condition) == (statement["Effect"] == "Deny")


def user_with(servers: Any, url: str, policy: Mapping[str, Any]) -> Any:
    """A session of boto3 of a user who has this policy alone; from now on it counts."""
    import boto3

    def no_auth_for(requests: float) -> None:
        request = Request(f"{url}/moto-api/reset-auth", str(requests).encode(), {"Content-Type": "text/plain"})  # noqa: S310
        with urlopen(request, timeout=10) as response:  # noqa: S310
            assert response.status == 200

    policy = json.loads(json.dumps(policy).replace('"s3:ListBucket"', '"s3:ListBucket", "s3:HeadBucket"'))  # moto has one more
    no_auth_for(math.inf)
    root, name = servers.session(), f"user-{uuid.uuid4().hex[:8]}"
    iam, s3 = root.client("iam", endpoint_url=url), root.client("s3", endpoint_url=url)
    try:
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="least", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        s3.create_bucket(Bucket="my-bucket")
        no_auth_for(0)
    finally:
        iam.close()
        s3.close()
    return boto3.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name="us-east-1")


async def test_the_rights_of_the_policies_are_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The operator's for the commands of the page; the worker's for all that a broker does, and not for those commands.

    moto's server looks at the rights of who asks.
    """
    pytest.importorskip("moto")
    from click.testing import CliRunner

    from repid_core.errors import BucketBrokerError
    from repid_s3 import S3BucketBroker
    from repid_s3.commands import s3

    servers = helpers("repid-s3")
    worker, operator = policies()[:2]
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    [shown] = [block.code for block in of_language(S3, "console") if "lifecycle" in block.code]
    commands = [shlex.split(line.removeprefix("$ ")) for line in shown.splitlines()]
    assert [command[:4] for command in commands] == [["repid", "s3", "lifecycle", verb] for verb in ("show", "apply", "remove")]
    with servers.moto() as url:
        place = f"s3://my-bucket/my-app/?endpoint_url={url}"

        def run(session: Any, verb: str, *more: str) -> tuple[int, str]:
            keys = session.get_credentials()
            variables = {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
            variables["AWS_DEFAULT_REGION"] = "us-east-1"
            done = CliRunner().invoke(s3, ["lifecycle", verb, place, *more], env=variables)
            return done.exit_code, done.output

        async def use(session: Any) -> None:
            broker = S3BucketBroker(place, lifecycle="check", session=session)
            await broker.connect()
            try:
                await broker.store_bucket("a", b"1", timedelta(days=1))
                assert await broker.get_bucket("a") == b"1"
                assert await broker.get_bucket("missing") is None
                await broker.delete_bucket("a")
                await broker.ping()
            finally:
                await broker.disconnect()

        session = user_with(servers, url, operator)
        assert run(session, "show")[0] == 1
        assert run(session, "apply", "--yes")[0] == 0
        assert run(session, "show")[0] == 0
        session = user_with(servers, url, worker)
        await use(session)
        status, said = run(session, "remove", "--yes")
        assert status != 0
        assert "s3:PutLifecycleConfiguration" in said
        worker["Statement"][0]["Action"].remove("s3:DeleteObject")
        with pytest.raises(BucketBrokerError, match="s3:DeleteObject"):
            await use(user_with(servers, url, worker))
