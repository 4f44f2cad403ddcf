"""Everything that must pass: `nox`, or one session of it, `nox -s tests -- -k retry`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.stop_on_first_error = False

PYPROJECT = nox.project.load_toml("pyproject.toml")
EXTRAS = "cron,testing"
CODE = ("repid_core", "tests/conformance", "tests/typing", "examples", "benchmarks", "noxfile.py")
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"


def runs(version: str) -> bool:
    """Whether this Python is here; a launcher that only says which one it would start is not."""
    python = shutil.which(f"python{version}")
    return python is not None and subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0  # noqa: S603


PYTHONS = [version for version in nox.project.python_versions(PYPROJECT) if version == THIS or runs(version)]


def needs(*groups: str) -> tuple[str, ...]:
    """What dependency groups of pyproject.toml list."""
    return nox.project.dependency_groups(PYPROJECT, *groups)


@nox.session
def lint(session: nox.Session) -> None:
    """Rules and format."""
    session.install(*needs("lint"))
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types; tests/typing/ holds what only a type checker can test."""
    session.install("-e", f".[{EXTRAS}]", *needs("types", "test"), "nox")
    session.run("mypy", *(session.posargs or CODE))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, but for the examples."""
    session.install("-e", f".[{EXTRAS}]", *needs("test"))
    session.run("pytest", "-m", "not examples", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Examples and documented snippets, run as they are written."""
    session.install("-e", f".[{EXTRAS}]", *needs("test"))
    session.run("pytest", "-m", "examples", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """The tests again, with the wheel that the sdist builds, and the source tree out of the way."""
    place = Path(session.create_tmp()).resolve()
    shutil.rmtree(place)
    place.mkdir()
    session.install(*needs("build", "test"))
    session.run("python", "-m", "build", "--outdir", str(place / "dist"), silent=True)
    (wheel,) = (place / "dist").glob("*.whl")
    session.install(f"{wheel}[{EXTRAS}]")
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "tests", "examples", "docs"):
        source = Path(name)
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, place / name)
    session.chdir(place)
    where = session.run("python", "-c", "import repid_core; print(repid_core.__file__)", silent=True)
    if "site-packages" not in str(where):
        session.error(f"the tests would run against {where}")
    session.run("pytest", *session.posargs)
