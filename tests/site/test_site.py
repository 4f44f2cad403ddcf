"""The site: no link is dead, and every page is right in a browser, wide and narrow, light and dark."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urljoin, urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page, Request, Response

Scheme = Literal["light", "dark"]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


class Anchors(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"href", "src"} and value is not None:
                self.links.append(value)
            elif name == "id" and value is not None:
                self.ids.add(value)


def test_no_link_is_dead(folder: Path) -> None:
    pages = {file.relative_to(folder).as_posix(): Anchors(file.read_text("utf-8")) for file in folder.rglob("*.html")}
    dead = defaultdict(list)
    for path, page in pages.items():
        for link in page.links:
            scheme, host, there, _, anchor = urlsplit(urljoin(f"//site/{path}", link))
            if scheme or host != "site":
                assert scheme in {"http", "https", "mailto", "data"}, f"{path}: {link}"
                assert host != "" or scheme in {"mailto", "data"}, f"{path}: {link}"
                continue
            file = unquote(there).lstrip("/")
            if not (folder / file).is_file() or (anchor and file in pages and unquote(anchor) not in pages[file].ids):
                dead[path].append(link)
    assert not dead


def test_every_page_has_its_place_in_the_navigation(folder: Path) -> None:
    """Pages that show files are reached by the links to them."""
    listed = {
        unquote(urlsplit(urljoin(f"//site/{path}", link)).path).lstrip("/")
        for path in ("index.html", *(file.relative_to(folder).as_posix() for file in folder.glob("*/**/index.html")))
        for link in Anchors((folder / path).read_text("utf-8")).links
    }
    pages = {file.relative_to(folder).as_posix() for file in folder.rglob("*.html")}
    assert {page for page in pages if not page.startswith("files/")} - listed - {
        "search.html",
        "genindex.html",
        "404.html",
    } == set()


@contextmanager
def complaints(tab: Page, site: str) -> Iterator[list[str]]:
    """What goes wrong in the tab meanwhile: in the console, in scripts, in requests."""
    found: list[str] = []

    def say(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            found.append(f"console: {message.text}")

    def ask(request: Request) -> None:
        if not request.url.startswith((f"{site}/", "data:", "blob:")):
            found.append(f"a request to {request.url}")

    def answer(response: Response) -> None:
        if response.status >= 400:
            found.append(f"{response.status}: {response.url}")

    def fail(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # its page was left
            found.append(f"{request.failure}: {request.url}")

    def throw(error: Exception) -> None:
        found.append(f"script: {error}")

    tab.on("console", say)
    tab.on("request", ask)
    tab.on("response", answer)
    tab.on("requestfailed", fail)
    tab.on("pageerror", throw)
    try:
        yield found
    finally:
        tab.remove_listener("console", say)
        tab.remove_listener("request", ask)
        tab.remove_listener("response", answer)
        tab.remove_listener("requestfailed", fail)
        tab.remove_listener("pageerror", throw)


def drawn(tab: Page, scheme: Scheme) -> None:
    """Wait for the diagrams. One that cannot be drawn has said so in the console."""
    theme = {"light": "default", "dark": "dark"}[scheme]
    tab.wait_for_function(
        "theme => [...document.querySelectorAll('pre.mermaid')].every("
        "place => place.dataset.failed || (place.dataset.drawn === theme && place.querySelector('svg')))",
        arg=theme,
    )


#: What reaches beyond the right edge, and is in nothing that scrolls by itself.
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  const scrolls = (e) => e && e !== document.body && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement));
  const wide = [...document.querySelectorAll("article *, header *, footer *")]
    .filter((e) => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement));
  return [`the page is ${document.documentElement.scrollWidth} px wide`, ...wide.slice(0, 3).map(
    (e) => `<${e.tagName.toLowerCase()} class="${e.getAttribute("class") || ""}"> ${e.textContent.trim().slice(0, 60)}`)];
}"""


def test_a_page_is_right(path: str, tab: Page, site: str) -> None:
    with complaints(tab, site) as found:
        tab.set_viewport_size(WIDE)
        tab.emulate_media(color_scheme="light")
        tab.goto(f"{site}/{path}")
        for scheme in SCHEMES:
            tab.emulate_media(color_scheme=scheme)
            drawn(tab, scheme)
            for name, size in (("wide", WIDE), ("narrow", NARROW)):
                tab.set_viewport_size(size)
                found += [f"{name}, {scheme}: {each}" for each in tab.evaluate(TOO_WIDE)]
        assert tab.title().strip()
        assert path == "search.html" or tab.locator("article h1").count() == 1, "a page has one title"
    assert not found, "\n".join(found)


def test_diagrams_follow_the_switch_of_the_theme(folder: Path, tab: Page, site: str) -> None:
    pages = [file for file in sorted(folder.rglob("*.html")) if 'class="mermaid"' in file.read_text("utf-8")]
    if not pages:
        pytest.skip("there are no diagrams")
    tab.set_viewport_size(WIDE)
    tab.emulate_media(color_scheme="light")
    tab.goto(f"{site}/{pages[0].relative_to(folder).as_posix()}")
    drawn(tab, "light")
    before = tab.locator("pre.mermaid svg").first.get_attribute("id")
    for _ in range(3):  # through "automatic", "light" and "dark", in Furo's order
        tab.locator(".content-icon-container .theme-toggle, .theme-toggle-content .theme-toggle").first.click()
        if tab.evaluate("document.body.dataset.theme") == "dark":
            break
    drawn(tab, "dark")
    assert tab.locator("pre.mermaid svg").first.get_attribute("id") != before
    tab.evaluate("localStorage.clear()")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--older-than", "reference/cli.html"),
        ("--grace", "reference/cli.html"),
        ("REPID_DISABLE_PLUGINS", "reference/"),
        ("PayloadTooLargeError", "reference/"),
        ("args_bucket_threshold", "reference/"),
        ("max_series", "plugins/repid-prometheus.html"),
        ("RedisMessageBroker", "reference/api/plugins.html"),
        ("Job.enqueue", "reference/api/jobs.html"),
        ("redrive", "how-to/operate.html"),
        ("sentinel", "how-to/redis-sentinel-and-cluster.html"),
    ],
)
def test_the_search_finds(words: str, expected: str, tab: Page, site: str) -> None:
    with complaints(tab, site) as found:
        tab.set_viewport_size(WIDE)
        tab.goto(f"{site}/index.html")
        tab.locator(".sidebar-search").fill(words)
        tab.locator(".sidebar-search").press("Enter")
        tab.wait_for_url("**/search.html?*")
        tab.wait_for_function(r"/finished|no match|did not match/i.test(document.querySelector('#search-results').textContent)")
        results = [
            urlsplit(str(each.get_attribute("href"))).path for each in tab.locator("#search-results ul.search > li > a").all()
        ]
    assert any(result.removeprefix("/").startswith(expected) for result in results[:5]), results[:10]
    # of an anchor with dots it looks for a summary in vain, and says so
    assert [each for each in found if "Anchored content block" not in each] == []


PICTURES = {
    "landing": "index.html",
    "how-to": "how-to/operate.html",
    "tables": "reference/cli.html",
    "plugin": "plugins/repid-redis.html",
    "api": "reference/api/jobs.html",
    "contract": "reference/api/plugin-authors.html",
    "search": "search.html?q=prefetch",
}


@pytest.mark.timeout(600)
def test_pictures(request: pytest.FixtureRequest, folder: Path, tab: Page, site: str) -> None:
    pictures: Path | None = request.config.getoption("pictures")
    if pictures is None:
        pytest.skip("no --pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    diagrams = [file for file in sorted(folder.rglob("*.html")) if 'class="mermaid"' in file.read_text("utf-8")]
    tab.goto(f"{site}/index.html")
    tab.evaluate("localStorage.clear()")  # what was searched for last
    pages = {**PICTURES, **{f"diagram-{file.stem}": file.relative_to(folder).as_posix() for file in diagrams}}
    for name, path in pages.items():
        for scheme in SCHEMES:
            for width, size in (("desktop", WIDE), ("phone", NARROW)):
                tab.set_viewport_size(size)
                tab.emulate_media(color_scheme=scheme)
                tab.goto(f"{site}/{path}")
                drawn(tab, scheme)
                if name == "search":
                    tab.wait_for_selector("#search-results ul.search li")
                if name.startswith("diagram-"):
                    tab.locator("pre.mermaid").first.scroll_into_view_if_needed()
                tab.screenshot(path=pictures / f"{name}-{width}-{scheme}.png")


def test_every_name_of_the_api_is_described(folder: Path) -> None:
    """What a docstring says of it is on the page, and can be linked to."""
    for page in Path("docs/reference/api").glob("*.md"):
        names = [name for block in re.findall(r"(?ms)^```api\n(.*?)^```$", page.read_text("utf-8")) for name in block.split()]
        html = "index" if page.stem == "README" else page.stem
        ids = Anchors((folder / "reference" / "api" / f"{html}.html").read_text("utf-8")).ids
        assert set(names) <= ids, page
