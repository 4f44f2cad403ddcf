"""The plugin author's path: from an empty folder to a green conformance run, in two commands; and what they wrote."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from repid_core.cli.scaffold import KINDS, render
from repid_core.config import SECTIONS
from tests.integration import packages

ALL = ",".join(KINDS)
LIMIT = 110  # seconds for one command, on a machine that has other things to do
pytestmark = pytest.mark.timeout(240)


def run(command: list[str], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An environment of its own, which sees what is installed in this one, and is not seen by it."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    context = {"base": str(place), "platbase": str(place)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=context))
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return Path(sysconfig.get_path("scripts", "venv", vars=context)) / "python"


@pytest.fixture
def environment() -> dict[str, str]:
    """pip builds with what is here, and asks nobody."""
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    path = os.pathsep.join(entry for entry in sys.path if entry and "site-packages" not in entry)
    return {**packages.environment(), **offline, "PYTHONPATH": path}


def test_two_commands_from_an_empty_folder_to_a_green_conformance_run(
    python: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    repid = [str(python), "-m", "repid_core"]
    start = time.monotonic()
    new = run([*repid, "plugin", "new", "repid-acme", "--kind", ALL, "--install"], folder, environment)
    assert new.returncode == 0, new.stdout + new.stderr
    tested = run([*repid, "plugin", "test", "repid-acme", "--in-process", "--report", "out/found.json"], folder, environment)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert time.monotonic() - start < 60  # it takes four seconds
    report = json.loads((folder / "out" / "found.json").read_text("utf-8"))
    assert (report["format"], report["plugin"], report["version"]) == (1, "repid-acme", "0.1.0")
    assert {suite["suite"] for suite in report["suites"]} == {f"{kind.replace('-', ' ')} 'acme'" for kind in KINDS}
    outcomes = {promise["outcome"] for suite in report["suites"] for promise in suite["promises"]}
    assert outcomes == {"kept", "not declared"}
    for suite in report["suites"]:
        assert f"  {suite['suite']}: {suite['summary']}\n" in tested.stdout
    plain = run([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "repid-acme"], folder, environment)
    assert plain.returncode == 0, plain.stdout
    assert "tests/test_message_broker.py::TestMessageBroker" in plain.stdout


def test_what_pip_says_is_told_and_the_package_stays(python: Path, environment: dict[str, str], tmp_path: Path) -> None:
    command = [str(python), "-m", "repid_core", "plugin", "new", "repid-acme", "--kind", "serializer", "--install"]
    done = run(command, tmp_path, {**environment, "PIP_NO_BUILD_ISOLATION": "1"})  # whose isolated build finds no hatchling
    assert done.returncode == 1
    assert "repid-acme is written, but pip could not install it; do so by hand" in done.stderr
    assert "hatchling" in done.stderr
    assert (tmp_path / "repid-acme" / "pyproject.toml").exists()


NAMES = {kind: f"repid-only-{kind}" for kind in KINDS}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of each kind alone, and one of all, by name; the last has a long name, which must not break lines."""
    folder = tmp_path_factory.mktemp("written")
    choices = {
        **{name: [kind] for kind, name in NAMES.items()},
        "repid-acme": list(KINDS),
        "repid-" + "long-" * 6 + "name": list(KINDS),
    }
    return {name: packages.write(folder / name, render(name, kinds)) for name, kinds in choices.items()}


def test_all_of_it_passes_its_own_rules(written: dict[str, Path]) -> None:
    for name, folder in written.items():
        for check in (["check"], ["format", "--check"]):
            done = run([sys.executable, "-m", "ruff", *check, "--no-cache", "."], folder, packages.environment())
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def test_all_of_it_passes_mypy_in_its_strict_mode(written: dict[str, Path], tmp_path: Path) -> None:
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    done = run(mypy, written["repid-acme"], packages.environment(written["repid-acme"]))
    assert done.returncode == 0, done.stdout + done.stderr
    singles = [written[name] for name in NAMES.values()]
    modules = [word for name in NAMES.values() for word in ("-p", name.replace("-", "_"))]
    environment = {**packages.environment(), "MYPYPATH": os.pathsep.join(map(str, singles))}
    config = ["--config-file", str(written["repid-acme"] / "pyproject.toml")]
    done = run([*mypy, *config, *modules], tmp_path, environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES.values())
def test_each_kind_alone_is_found_and_green(name: str, written: dict[str, Path]) -> None:
    folder = written[name]
    done = run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], folder, packages.environment(folder))
    assert done.returncode == 0, done.stdout
    assert "promises kept" in done.stdout
    assert "broken" not in done.stdout


def test_its_readme_is_right_about_the_configuration_and_the_settings(written: dict[str, Path], tmp_path: Path) -> None:
    folder = written["repid-acme"]
    readme = (folder / "README.md").read_text("utf-8")
    [config] = re.findall(r"^```toml\n# repid.toml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (tmp_path / "repid.toml").write_text(config, "utf-8")
    code = """
        import json
        from repid_core.config import load
        from repid_core.settings import keys_of

        found = load("repid.toml").sections
        print(json.dumps({path: [section.backend.name, keys_of(type(section.settings))] for path, section in found.items()}))
    """
    done = run([sys.executable, "-c", dedent(code)], tmp_path, packages.environment(folder))
    assert done.returncode == 0, done.stderr
    sections = json.loads(done.stdout)
    assert set(sections) == {*SECTIONS, "middlewares[0]"}
    assert {name for name, _ in sections.values()} == {"acme"}
    documented = re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE)
    kinds = ["message_broker", "args_bucket_broker", "serializer", "converter", "middlewares[0]"]
    assert documented == [key for kind in kinds for key in sections[kind][1]]


def hold(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "repid_core", "plugin", "test", *arguments]
    return run(command, folder, {**packages.environment(folder), **variables})


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_settings_come_from_a_file_from_the_url_and_from_the_command_line(written: dict[str, Path], tmp_path: Path) -> None:
    folder = written["repid-only-bucket-broker"]
    config = tmp_path / "mine.toml"
    config.write_text(
        'message_broker = "memory"\n[results_bucket_broker]\nbackend = "only-bucket-broker"\nmax_payload = "${SIZE}"\n'
    )
    promise = "test_bucket_too_large"

    def declared(*arguments: str) -> bool:
        done = hold(folder, "repid-only-bucket-broker", "--in-process", "--json", *arguments, SIZE="64 KiB")
        assert done.returncode == 0, done.stdout + done.stderr
        [suite] = findings(done)["suites"]
        return any(found["test"] == promise and found["outcome"] == "kept" for found in suite["promises"])

    assert not declared()
    assert declared("--set", "max_payload=1000")
    assert declared("--config", str(config))
    assert declared("--url", "only-bucket-broker://there", "--config", str(config))


def test_a_server_without_a_prefix_is_left_alone_unless_that_is_meant(tmp_path: Path) -> None:
    files = render("repid-shared", ["bucket-broker"])
    module = "repid_shared/bucket_broker.py"
    files[module] = files[module].replace('    prefix: str = ""\n', "").replace("self.settings.prefix + ", "")
    folder = packages.write(tmp_path, files)
    done = hold(folder, "repid-shared", "--in-process")
    assert done.returncode == 2
    assert "bucket broker 'shared' has no setting prefix, so that its tests would delete" in done.stderr
    done = hold(folder, "repid-shared", "--in-process", "--quiet", "--url", "shared://for/tests", "--no-prefix")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_test_works_under_a_prefix_of_its_own(tmp_path: Path) -> None:
    files = render("repid-shy", ["bucket-broker"])
    module = "repid_shy/bucket_broker.py"
    wary = """
        if not settings.prefix.startswith("mine:test-"):
            raise ValueError(f"{settings.prefix!r} is in use")
    """
    files[module] = files[module].replace(
        "        self.settings = settings\n", f"{wary.rstrip()}\n        self.settings = settings\n"
    )
    folder = packages.write(tmp_path, files)
    done = hold(folder, "repid-shy", "--in-process", "--quiet", "--set", "prefix=mine:")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_broken_promise_is_told_with_what_was_seen_and_ends_in_status_1(tmp_path: Path) -> None:
    files = render("repid-forgetful", ["bucket-broker"])
    module = "repid_forgetful/bucket_broker.py"
    files[module] = files[module].replace("None if ttl is None else now + ttl", "now + (ttl or timedelta(seconds=1))")
    folder = packages.write(tmp_path, files)
    done = hold(folder, "forgetful", "--in-process", "--quiet")
    assert done.returncode == 1
    assert "bucket broker 'forgetful', broken: " in done.stdout
    assert "  B3   TTL None never expires.\n" in done.stdout
    assert "       test_no_ttl_never_expires: get_bucket('b'): None, instead of b'data'" in done.stdout
    assert "kept: " not in done.stdout
    assert " broken\n" in done.stdout
    done = hold(folder, "forgetful", "--in-process", "--deviation", "test_no_ttl_never_expires=it forgets")
    assert "test_no_ttl_never_expires: it forgets" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["repid-only-serialiser"], "no plugin 'repid-only-serialiser' is installed: did you mean 'repid-only-serializer'?"),
        (["only-serializer", "--set", "levle=3"], "no backend of repid-only-serializer has this setting: did you mean 'level'?"),
        (["only-serializer", "--set", "level=high"], "serializer.level: expected "),
        (["only-serializer", "--set", "level"], "'level' is not of the form KEY=VALUE"),
        (["only-serializer", "--url", "x://y"], "no backend of repid-only-serializer has the setting url: leave it out"),
        (["only-serializer", "--config", "nowhere.toml"], "nowhere.toml cannot be read"),
    ],
)
def test_what_it_cannot_do_is_said_at_once(arguments: list[str], says: str, written: dict[str, Path]) -> None:
    done = hold(written["repid-only-serializer"], *arguments)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
