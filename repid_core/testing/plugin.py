"""The pytest plugin for applications: the fixtures `repid` and `sync_repid`, and the marker.

pytest loads it by core's entry point in every project that has core installed. Until a test asks for one of them it does
nothing, and imports nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Generator, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from repid_core.testing.harness import Harness
    from repid_core.testing.sync import SyncHarness

T = TypeVar("T")

_FAILED = pytest.StashKey[bool]()
_SCOPES = ("function", "class", "module", "package", "session")
_MARKER = (
    "repid(routers=[...], eager=False, ...): the test has the fixture `repid`, or `sync_repid` if it is not asynchronous, an "
    "application in memory, made with these arguments of repid_core.testing.Harness"
)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; and, where there is pytest-asyncio, fixtures of its kind."""
    config.addinivalue_line("markers", _MARKER)
    if config.pluginmanager.hasplugin("asyncio"):
        config.pluginmanager.register(_asyncio_fixtures(), "repid-asyncio")


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test with the marker has the fixture, whether it names it or not."""
    names = getattr(item, "fixturenames", None)
    if names is None or {"repid", "sync_repid"} & set(names) or item.get_closest_marker("repid") is None:
        return
    names.insert(0, "repid" if _is_async(item) else "sync_repid")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember that a test has failed: what it left behind is no matter then."""
    if call.excinfo is not None:
        item.stash[_FAILED] = True
    return (yield)


@pytest.fixture
def repid_options() -> dict[str, Any]:
    """Arguments for the `Harness` of each test, which the marker's go before. Override it in conftest.py."""
    return {}


@pytest.fixture
def repid(request: pytest.FixtureRequest) -> Harness:
    """The application under test, in memory, on a clock that the test moves; see `repid_core.testing.Harness`."""
    item = request.node
    if not _is_async(item):
        pytest.fail(
            "the fixture `repid` lives on an event loop: make the test an `async def`, or take the fixture `sync_repid`",
            pytrace=False,
        )
    asyncio_marker = item.get_closest_marker("asyncio")
    if asyncio_marker is not None and request.config.pluginmanager.hasplugin("repid-asyncio"):
        default = request.config.getini("asyncio_default_test_loop_scope")
        scope = asyncio_marker.kwargs.get("loop_scope") or default or "function"
        name = f"_repid_asyncio_{scope}"
    elif "anyio_backend" in request.fixturenames:
        backend = request.getfixturevalue("anyio_backend_name")
        if backend != "asyncio":
            pytest.fail(
                f"repid runs on asyncio, and not on {backend}: let the fixture `anyio_backend` be 'asyncio'", pytrace=False
            )
        name = "_repid_anyio"
    else:
        pytest.fail(
            "nothing runs this async test: mark it with pytest.mark.asyncio (pytest-asyncio) or pytest.mark.anyio",
            pytrace=False,
        )
    harness: Harness = request.getfixturevalue(name)
    return harness


@pytest.fixture
def sync_repid(request: pytest.FixtureRequest, repid_options: dict[str, Any]) -> Iterator[SyncHarness]:
    """The application under test, for tests that are not asynchronous; see `repid_core.testing.SyncHarness`."""
    from repid_core.testing.sync import SyncHarness  # noqa: PLC0415 — costs nothing where it is not used

    if _is_async(request.node):
        pytest.fail("the fixture `sync_repid` is for tests that are not asynchronous: take `repid`", pytrace=False)
    harness = _made(SyncHarness, request, repid_options)
    harness.__enter__()
    try:
        yield harness
    finally:
        harness.close(check=not request.node.stash.get(_FAILED, False))


@pytest.fixture
async def _repid_anyio(request: pytest.FixtureRequest, repid_options: dict[str, Any]) -> AsyncIterator[Harness]:
    async for harness in _harness(request, repid_options):
        yield harness


def _asyncio_fixtures() -> object:
    """A fixture for each loop that pytest-asyncio may run a test on."""
    import pytest_asyncio  # noqa: PLC0415 — it is loaded

    def fixture(scope: Any) -> Any:
        @pytest_asyncio.fixture(loop_scope=scope, name=f"_repid_asyncio_{scope}")
        async def made(request: pytest.FixtureRequest, repid_options: dict[str, Any]) -> AsyncIterator[Harness]:
            async for harness in _harness(request, repid_options):
                yield harness

        return made

    plugin = ModuleType("repid_core.testing.asyncio_fixtures")
    for scope in _SCOPES:
        setattr(plugin, f"{scope}_loop", fixture(scope))
    return plugin


async def _harness(request: pytest.FixtureRequest, options: dict[str, Any]) -> AsyncIterator[Harness]:
    from repid_core.testing.harness import Harness  # noqa: PLC0415 — costs nothing where it is not used

    harness = _made(Harness, request, options)
    await harness.__aenter__()
    try:
        yield harness
    finally:
        await harness.close(check=not request.node.stash.get(_FAILED, False))


def _made(kind: type[T], request: pytest.FixtureRequest, options: dict[str, Any]) -> T:
    request.node.stash[_FAILED] = False  # a run before this one, of a test that is run again, is no matter
    marked: dict[str, Any] = {}
    for marker in request.node.iter_markers("repid"):
        if marker.args:
            pytest.fail(f"@pytest.mark.repid{marker.args!r}: name the arguments, such as routers=[…]", pytrace=False)
        marked = {**marker.kwargs, **marked}
    try:
        return kind(**{**options, **marked})
    except TypeError as error:
        pytest.fail(f"@pytest.mark.repid, or repid_options: {error}", pytrace=False)


def _is_async(item: Any) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(getattr(item, "obj", None) or _nothing))


def _nothing() -> None: ...
