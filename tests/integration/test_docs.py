"""What the documentation says: its programs run and print what it shows, its links lead somewhere, its plugins work."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path

import pytest
from attrs import frozen

from repid_core.cli.scaffold import KINDS, render
from repid_core.config import load
from tests.integration import packages

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
PLUGIN_PAGES = sorted(ROOT.glob("plugins/*/*.md"))  # whose programs the plugins' own tests run
LINKED = [*PAGES, *PLUGIN_PAGES, *ROOT.glob("benchmarks/*.md")]
FENCE = re.compile(r"(?ms)^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$|^(?P<heading>#+) (?P<title>[^\n]+)$")


@frozen
class Block:
    """A fenced block. `file` is the path that a first line such as `# package/module.py` gives it.

    A module that a page shows in pieces has several blocks, all but the first of which say `# package/module.py, continued`.
    """

    page: Path
    line: int
    language: str
    code: str
    file: str | None
    output: str | None  # of a program: the text block that follows under the same heading

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    found = list(FENCE.finditer(text))
    for match, after in zip_longest(found, found[1:]):
        if match["heading"]:
            continue
        name = re.match(r"# (\S+/?\S*\.\w+)(, continued)?\n", match["code"])
        output = after["code"] if after is not None and after["language"] == "text" else None
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page, line, match["language"], match["code"], name[1] if name else None, output)


BLOCKS = [block for page in PAGES for block in blocks(page)]
PROGRAMS = [block for block in BLOCKS if block.language == "python" and block.file is None]


def files_of(page: Path) -> dict[str, str]:
    """The files that a page shows, whole."""
    files: dict[str, str] = {}
    for block in BLOCKS:
        if block.page == page and block.file:
            first, _, rest = block.code.partition("\n")
            piece = f"\n\n{rest}" if first.endswith(", continued") else rest
            files[block.file] = files.get(block.file, "") + piece
    return files


PLUGINS = {page: files for page in PAGES if "entry-points" in (files := files_of(page)).get("pyproject.toml", "")}
Suites = Mapping[Path, "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Where the plugin of each page is, by page."""
    return {page: packages.write(tmp_path_factory.mktemp(page.stem), files) for page, files in PLUGINS.items()}


@pytest.fixture(scope="module", autouse=True)
def suites(folders: dict[Path, Path]) -> Iterator[Suites]:
    """Those plugins' tests. They mostly wait, so they run beside the other tests here."""
    with ExitStack() as stack:
        running = {}
        for page, folder in folders.items():
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error"],
                cwd=folder,
                env=packages.environment(folder),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
            )
            running[page] = stack.enter_context(process)
            stack.callback(process.kill)
        yield running


def test_there_are_pages_and_programs() -> None:
    assert len(PAGES) > 1
    assert PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_the_program_runs_and_prints_what_the_page_shows(program: Block, tmp_path: Path, folders: dict[Path, Path]) -> None:
    file = tmp_path / "program.py"
    file.write_text(program.code, "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", file.name],
        cwd=tmp_path,
        env=packages.environment(folders[program.page]) if program.page in folders else None,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert not re.search("never (retrieved|awaited)|was destroyed|Logging error", done.stderr), done.stderr
    if program.output is not None:
        assert done.stdout == program.output


def test_the_worker_and_the_producer_of_the_readme_share_a_file(tmp_path: Path) -> None:
    files = {block.file: block for block in BLOCKS if block.page == ROOT / "README.md" and block.file}
    for name in ("jobs.py", "worker.py", "producer.py"):
        (tmp_path / name).write_text(files[name].code, "utf-8")
    with subprocess.Popen([sys.executable, "-W", "error", "worker.py"], cwd=tmp_path, stdin=subprocess.DEVNULL) as worker:
        try:
            command = [sys.executable, "-W", "error", "producer.py"]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=55, check=False)
            assert done.stdout == files["producer.py"].output, done.stderr
            worker.send_signal(signal.SIGINT)
            assert worker.wait(30) == 0
        finally:
            worker.kill()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "toml"], ids=str)
def test_the_toml_is_valid(block: Block) -> None:
    assert tomllib.loads(block.code)


CONFIGURATIONS = [
    block for block in BLOCKS if block.file == "repid.toml" or (block.file == "pyproject.toml" and "[tool.repid" in block.code)
]


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=str)
def test_the_configuration_is_valid(block: Block) -> None:
    parsed = tomllib.loads(block.code)
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", block.code), "something")
    assert load(parsed["tool"]["repid"] if block.file == "pyproject.toml" else parsed, environ).parts()


def slug(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(match["title"]) for match in FENCE.finditer(page.read_text("utf-8")) if match["heading"]}


def links(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading; there are {sorted(anchors(target))}"


def test_every_page_can_be_reached_from_the_index() -> None:
    """By the index itself, or by the README of a folder that it links to."""
    reached: set[Path] = set()
    indexes = [ROOT / "docs" / "README.md"]
    for index in indexes:
        linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)} - reached
        reached |= linked
        indexes += [page for page in linked if page.name == "README.md" and ROOT / "docs" in page.parents and page not in indexes]
    pages = {page.resolve() for page in (*PAGES, *ROOT.glob("plugins/*/README.md")) if page.parent != ROOT}
    assert pages - {indexes[0]} <= reached


def test_the_in_memory_brokers_keep_as_many_promises_as_the_readme_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/conformance/test_memory.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout
    summary = re.findall(r"^.*promises kept.*\n", done.stdout, re.MULTILINE)
    assert "".join(summary) in [block.code for block in BLOCKS if block.page == ROOT / "README.md"]


def test_there_is_a_page_with_a_plugin_for_each_kind() -> None:
    assert {page.stem.removeprefix("write-a-") for page in PLUGINS} == set(KINDS)


@pytest.mark.parametrize("page", PLUGINS, ids=lambda page: page.stem)
def test_the_plugin_of_the_page_keeps_the_contract_as_the_page_says(page: Path, suites: Suites) -> None:
    output, _ = suites[page].communicate(timeout=55)
    assert suites[page].returncode == 0, output
    found = re.findall(r"^.*promises kept.*$", output, re.MULTILINE)
    assert found
    assert "\n".join(found) in [block.code.strip() for block in BLOCKS if block.page == page and block.language == "text"]


def test_the_message_broker_of_the_page_is_what_the_command_writes() -> None:
    [page] = [page for page in PLUGINS if page.stem == "write-a-message-broker"]
    written = render("repid-acme", ["message-broker"])
    assert {name: text for name, text in PLUGINS[page].items() if name != "pyproject.toml"} == {
        name: written[name] for name in PLUGINS[page] if name != "pyproject.toml"
    }


@pytest.mark.parametrize("page", PLUGINS, ids=lambda page: page.stem)
def test_the_plugin_of_the_page_passes_the_rules_that_the_command_brings(
    page: Path, folders: dict[Path, Path], tmp_path: Path
) -> None:
    rules = tmp_path / "pyproject.toml"
    rules.write_text(render("repid-acme", ["serializer"])["pyproject.toml"], "utf-8")
    package = next(name.partition("/")[0] for name in PLUGINS[page] if name.startswith("repid_"))
    mypy = ["mypy", "--config-file", str(rules), "--cache-dir", str(tmp_path), package, "tests"]
    for check in (mypy, ["ruff", "check", "--config", str(rules), "--no-cache", "."]):
        done = subprocess.run(
            [sys.executable, "-m", *check],
            cwd=folders[page],
            env=packages.environment(folders[page]),
            capture_output=True,
            text=True,
            timeout=55,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def counted() -> str:
    """How many blocks there are, by language, for people: `python -m tests.integration.test_docs`."""
    every = [block for page in LINKED for block in blocks(page)]
    languages = sorted({block.language for block in every})
    lines = [f"{language or 'no language'}: {sum(block.language == language for block in every)}" for language in languages]
    return "\n".join([f"{len(every)} blocks on {len(LINKED)} pages, {len(PROGRAMS)} of them programs", *lines])


if __name__ == "__main__":
    print(counted())  # noqa: T201
