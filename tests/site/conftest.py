"""The site as it was built, behind a server of its own, and a browser. `nox -s docs` builds it and gives the options."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: What keeps a browser from talking to anybody but the page's server; root has no sandbox.
ALONE = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--site", type=Path, help="the folder with the site's HTML")
    parser.addoption("--browser", help="the path of Chromium; without it, what needs a browser is skipped")
    parser.addoption("--pictures", type=Path, help="a folder to write pictures of some pages into")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without a site there is nothing to test; other sessions collect everything below tests/."""
    return True if collection_path.suffix == ".py" and config.getoption("site", None) is None else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "path" in metafunc.fixturenames:
        site = metafunc.config.getoption("site")
        metafunc.parametrize("path", [file.relative_to(site).as_posix() for file in sorted(site.rglob("*.html"))])


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and says nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def folder(request: pytest.FixtureRequest) -> Path:
    site: Path = request.config.getoption("site")
    return site


@pytest.fixture(scope="session")
def site(folder: Path) -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    executable = request.config.getoption("browser")
    if executable is None:
        pytest.skip("no --browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=executable, args=ALONE) as launched:
        yield launched


@pytest.fixture(scope="session")
def tab(browser: Browser) -> Iterator[Page]:
    """One for all pages, so that they share its cache."""
    page = browser.new_page()
    yield page
    page.close()
