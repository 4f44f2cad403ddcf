"""What the documentation says: its programs run and print what it shows, its links lead somewhere, its example plugin works."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pytest
from attrs import frozen

from repid_core.config import load

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
FENCE = re.compile(r"(?ms)^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$|^(?P<heading>#+) (?P<title>[^\n]+)$")


@frozen
class Block:
    """A fenced block. `file` is the path that a first line such as `# package/module.py` gives it."""

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
        name = re.match(r"# (\S+/?\S*\.\w+)\n", match["code"])
        output = after["code"] if after is not None and after["language"] == "text" else None
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page, line, match["language"], match["code"], name[1] if name else None, output)


BLOCKS = [block for page in PAGES for block in blocks(page)]
PROGRAMS = [block for block in BLOCKS if block.language == "python" and block.file is None]
BACKEND = ROOT / "docs" / "how-to" / "write-a-backend.md"


def environment(package: Path) -> dict[str, str]:
    """With the package where Python finds it."""
    path = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin of the page about backends, its metadata as an installer would write it."""
    folder = tmp_path_factory.mktemp("plugin")
    files = {block.file: block.code for block in BLOCKS if block.page == BACKEND and block.file}
    for name, code in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, "utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", "utf-8")
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {to}" for name, to in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join([*lines, ""]), "utf-8")
    return folder


@pytest.fixture(scope="module", autouse=True)
def suite(package: Path) -> Iterator[subprocess.Popen[str]]:
    """That plugin's tests. They mostly wait, so they run beside the other tests here."""
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error"],
        cwd=package,
        env=environment(package),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        process.kill()


def test_there_are_pages_and_programs() -> None:
    assert len(PAGES) > 1
    assert PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_the_program_runs_and_prints_what_the_page_shows(program: Block, tmp_path: Path, package: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(program.code, "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", file.name],
        cwd=tmp_path,
        env=environment(package) if program.page == BACKEND else None,
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading; there are {sorted(anchors(target))}"


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert {page.resolve() for page in PAGES if ROOT / "docs" in page.parents and page != index} <= linked


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


def test_the_example_plugin_keeps_the_contract_as_the_page_says(suite: subprocess.Popen[str]) -> None:
    output, _ = suite.communicate(timeout=55)
    assert suite.returncode == 0, output
    [summary] = re.findall(r"^.*promises kept.*$", output, re.MULTILINE)
    assert summary in [block.code.strip() for block in BLOCKS if block.page == BACKEND and block.language == "text"]
