"""The command as a whole: what it offers, how it fails, and what it does about plugins that add to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from repid_core import RepidError
from repid_core.cli import COMMANDS, main
from repid_core.errors import BrokerConnectionError, ConfigError
from repid_core.plugins import Plugins


def add(monkeypatch: pytest.MonkeyPatch, *commands: click.Command) -> None:
    monkeypatch.setattr(Plugins, "commands", lambda self: list(commands))
    monkeypatch.setattr(main, "_added", None)


def raising(error: BaseException, name: str = "odd") -> click.Command:
    def call() -> None:
        raise error

    return click.Command(name, callback=call, help="Raise.")


def test_help_lists_every_command_with_what_it_does(shop):
    output = shop("--help", app=False).output
    for name in COMMANDS:
        assert f"  {name} " in output
    assert shop("-h", app=False).output == output


def test_a_command_is_imported_when_it_is_called_and_no_other(tmp_path):
    code = "import sys, repid_core.cli as c; c.main(['enqueue', '--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    loaded = done.stdout.rsplit("\n", 2)[-2].split()
    assert "repid_core.cli.jobs" in loaded
    assert not {"repid_core.cli.worker", "repid_core.cli.diagnosis", "rich", "uvloop", "watchfiles"} & set(loaded)


@pytest.mark.parametrize("library", ["click", "rich"])
def test_without_what_it_needs_it_says_what_to_install(library):
    code = f"import sys; sys.modules[{library!r}] = None; from repid_core.__main__ import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "queues", "--help"], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 1
    assert done.stderr == "the repid command needs click and rich: pip install 'repid-core[cli]'\n"


def test_it_is_also_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "repid_core", "--version"], capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.startswith("repid, version ")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RepidError("all is lost"), 1),
        (BrokerConnectionError("it is away"), 1),
        (ConfigError("no file"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=["RepidError", "BrokerConnectionError", "ConfigError", "KeyboardInterrupt"],
)
def test_errors_of_repid_are_a_message_and_a_status(shop, monkeypatch, error, status):
    add(monkeypatch, raising(error))
    result = shop("odd", status=status, app=False)
    assert result.output == (f"Error: {error}\n" if status < 130 else "Interrupted.\n")


def test_debug_shows_the_traceback(shop, monkeypatch):
    add(monkeypatch, raising(RepidError("all is lost")))
    result = shop("--debug", "odd", status=1, app=False)
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("RepidError: all is lost\nError: all is lost\n")


def test_debug_may_stand_behind_the_command_too(shop):
    assert "OSError: out of paper\n" in shop("stats", "--app", "shop:fail", "--debug", status=2, app=False).stderr


def test_commands_of_plugins_are_there_and_do_not_replace_its_own(shop, monkeypatch):
    add(monkeypatch, click.Command("lift", callback=lambda: click.echo("up")), raising(RepidError("not this"), "queues"))
    assert "  lift" in shop("--help", app=False).output
    assert shop("lift", app=False).output == "up\n"
    assert shop("queues").exit_code == 0


def test_plugins_whose_commands_fail_do_no_harm(tmp_path):
    """Whatever they raise; `repid plugins` says what."""
    for name, fault in (("repid_one", "1 / 0"), ("repid_two", "raise SystemExit(9)"), ("repid_three", "return [3]")):
        (tmp_path / f"{name}.py").write_text(
            "from repid_core import hookimpl\n"
            "@hookimpl\ndef repid_register_message_brokers(): return []\n"
            f"@hookimpl\ndef repid_register_commands():\n    import click\n    {fault}\n"
        )
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[repid]\n{name.removeprefix('repid_')} = {name}\n")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "import sys; sys.path.append('.'); from repid_core.__main__ import run; run()", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=50)

    assert run("--help").returncode == 0
    done = run("plugins", "--json")
    assert done.returncode == 1, done.stderr
    problems = {plugin["distribution"]: plugin["problem"] for plugin in json.loads(done.stdout)}
    failed = "installed but failed to load: repid_register_commands"
    assert problems["repid-one"] == f"{failed} failed: ZeroDivisionError: division by zero"
    assert problems["repid-two"] == f"{failed} failed: SystemExit: 9"
    assert problems["repid-three"] == f"{failed} gives 3, which is no click.Command"


def test_an_unknown_command_is_a_usage_error(shop):
    assert "No such command 'quueues'" in shop("quueues", app=False, status=2).output


def test_shells_complete_it(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "repid_core"],
        env={"_REPID_COMPLETE": "bash_complete", "COMP_WORDS": "repid de", "COMP_CWORD": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.stdout == "plain,dead\n"
