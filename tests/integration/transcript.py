"""A reader who follows pages word by word: keeps the files that they show, types what follows a `$`, and compares what comes.

What a page has to keep to:

- a block whose first line is `# name.ext` is a file of the project's folder, whole;
- in `console` blocks, a line that begins with `$ ` is typed, `^C` is Ctrl-C, and the rest is what is seen. The word after
  `console` is the terminal: `console worker` is typed into another one than `console`;
- a `text` block with a terminal, `text worker`, is what is seen next there;
- `…` stands for anything in a line, and for any lines if it is all of a line. What always varies is in `VARYING`.

Commands run in bash, in a terminal. One without a name is waited for, and must print nothing else; one of a terminal with a name
may go on.
"""

from __future__ import annotations

import codecs
import fcntl
import importlib.metadata
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from attrs import evolve, frozen

PATIENCE = 30.0  # seconds for one output, on a machine that may be busy
VARYING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\x1b\[[0-9;?]*[A-Za-z]", ""),  # colours
        (r"[ \t\r]+$", ""),
        (r"\b\d\d:\d\d:\d\d\.\d{3}\b", "12:00:00.000"),
        (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S*", "2030-01-07T12:00:00+00:00"),
        (r" +[\d,]+\.\d ms\b", "  1.0 ms"),
        (r"\(process \d+\)", "(process 1)"),
        (r"^repid [\d.]+\w*, (.*), (?:asyncio|uvloop)$", r"repid 1, \1, asyncio"),
        (r"^(ok +[\w-]*(?: repid-\w+)? +)\d+\.\d+\.\d+\S*(, Python.*)?", r"\1 1.0"),
        (r" +\[100%\]$", " [100%]"),  # pytest's
        (r" in \d+\.\d\ds$", " in 0.10s"),
    )
]
FENCE = re.compile(r"(?ms)^```(\w+)(?: (\w+))?\n(.*?)^```$")
PROMPT = re.compile(r"\x1e(\d+)\x1e")
PLUGIN = re.compile(r"ok +plugin (\S+)")  # a line of `repid check`
TOO_QUICK = re.compile(r"\S+ INFO +(?:worker \d+ )?waiting for \d+ running jobs")  # of who stops a worker before people could
ENTER = """
import fcntl, os, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
"""
ANY_LINES = r"(?:.*\n)*?"


@frozen
class Step:
    """A file to be kept, or something that is typed and seen.

    Attributes:
        page: Where it is.
        line: The line there.
        terminal: The terminal's name; empty for the first.
        file: The file's name, or empty.
        typed: The command, "^C", or empty if something is only seen.
        text: What the file has, or what is seen.
    """

    page: Path
    line: int
    terminal: str = ""
    file: str = ""
    typed: str = ""
    text: str = ""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def steps(page: Path) -> Iterator[Step]:
    """What there is to be done on a page, in its order."""
    text = page.read_text("utf-8")
    for match in FENCE.finditer(text):
        language, terminal, body = match.groups("")
        line = text.count("\n", 0, match.start()) + 1
        first = body.partition("\n")[0]
        if name := re.fullmatch(r"# (\S+\.\w+)", first):
            yield Step(page, line, file=name[1], text=body)
        elif language == "console":
            yield from _commands(Step(page, line, terminal), body)
        elif language == "text" and terminal:
            yield Step(page, line, terminal, text=body)


def _commands(where: Step, body: str) -> Iterator[Step]:
    step: Step | None = None
    for number, line in enumerate(body.splitlines(keepends=True), where.line + 1):
        if line.startswith("$ ") or line == "^C\n":
            if step is not None:
                yield step
            step = evolve(where, line=number, typed=line.removeprefix("$ ").rstrip("\n"))
        elif step is None:
            raise ValueError(f"{where}: nothing is typed before {line!r}")
        else:
            step = evolve(step, text=step.text + line)
    if step is not None:
        yield step


def plain(text: str) -> str:
    """Without what always varies."""
    lines = text.split("\n")
    for pattern, replacement in VARYING:
        lines = [pattern.sub(replacement, line) for line in lines]
    return "\n".join(lines)


def pattern_of(text: str) -> str:
    """A regular expression for what fits a text of a page."""
    lines = plain(text).splitlines()
    return "".join(ANY_LINES if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in lines)


class Terminal:
    """A terminal with bash in it, and what has come there and not been compared yet.

    Args:
        folder: Where bash begins.
        environ: Its environment.
        seen: What a reader sees of what comes.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str], seen: Callable[[str], str]) -> None:
        self._seen = seen
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._text = ""
        self._prompts = 1  # that are still to be read: one for each command, and the first
        self._slack = False  # whether the page leaves out what comes next
        self._fd, theirs = pty.openpty()
        try:
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
            settings = termios.tcgetattr(theirs)
            settings[3] &= ~termios.ECHO
            termios.tcsetattr(theirs, termios.TCSANOW, settings)
            self._bash = subprocess.Popen(
                [sys.executable, "-c", ENTER],
                cwd=folder,
                env={**environ, "PS1": "\x1e$?\x1e", "PS2": ""},
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        self.until_prompt("(?:.*\n)*")  # bash may say something about itself

    def type(self, command: str) -> None:
        """Type a command, and press Return."""
        os.write(self._fd, f"{command}\n".encode())
        self._prompts += 1

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._fd, b"\x03")

    def until_prompt(self, wanted: str) -> str | None:
        """Wait for the next prompt, and give what came before it, unless that fits."""
        end = time.monotonic() + PATIENCE
        while (prompt := PROMPT.search(self._text)) is None:
            if not self._read(end):
                return f"{self._seen(self._text)}[and then nothing for {PATIENCE:g} s]"
        text, self._text = self._text[: prompt.start()], self._text[prompt.end() :]
        self._prompts -= 1
        seen = self._seen(text if not text or text.endswith("\n") else f"{text}\n")
        return None if re.fullmatch(self._expected(wanted), seen) else seen

    def until_seen(self, wanted: str) -> str | None:
        """Wait until what comes begins with what is wanted, and give it, unless it does."""
        end = time.monotonic() + PATIENCE
        expected = re.compile(self._expected(wanted))
        while True:
            prompts = len(PROMPT.findall(self._text))
            whole, newline, rest = PROMPT.sub("", self._text).rpartition("\n")
            seen = self._seen(whole + newline)
            if found := expected.match(seen):
                self._text, self._slack = seen[found.end() :] + rest, wanted.endswith(ANY_LINES)
                self._prompts -= prompts
                return None
            if prompts >= self._prompts or not self._read(end):  # nothing runs, or nothing comes
                return seen + rest

    def _expected(self, wanted: str) -> str:
        slack, self._slack = self._slack, False
        return ANY_LINES + wanted if slack else wanted

    def left(self) -> str:
        """What came and was not compared."""
        return "" if self._slack else self._seen(PROMPT.sub("", self._text))

    def _read(self, end: float) -> bool:
        if not select.select([self._fd], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # bash has ended
            return False
        self._text += self._decode(data).replace("\r\n", "\n")
        return bool(data)

    def close(self) -> None:
        """End bash, and before that, in order if it can, what runs in the foreground."""
        with suppress(OSError):
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
                foreground, end = os.tcgetpgrp(self._fd), time.monotonic() + 5
                if foreground == self._bash.pid:
                    break
                os.killpg(foreground, number)
                while os.tcgetpgrp(self._fd) == foreground and time.monotonic() < end:
                    self._read(time.monotonic() + 0.05)
        self._bash.kill()
        self._bash.wait()
        os.close(self._fd)


class Reader:
    """Who follows pages.

    Args:
        folder: Where the first command is typed.
        project: The folder that the pages make there; their files belong into it.
        instead: Texts of the pages in whose place others stand here, such as a port, in files, commands and outputs.
        mapped: Whether this process's environment stands for what the pages install; else it is done as they say.
    """

    def __init__(self, folder: Path, project: str, instead: Mapping[str, str], *, mapped: bool = True) -> None:
        self._folder, self._project = folder, folder / project
        self._instead, self._mapped = dict(instead), mapped
        self._terminals: dict[str, Terminal] = {}
        self._installed = {"repid-core"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "REPID", "COV"))}
        self._environ = kept | {
            "TERM": "dumb",  # elsewhere a progress bar is drawn over itself again and again
            "COLUMNS": "200",
            "LINES": "50",
            "PYTHONDONTWRITEBYTECODE": "1",
            "VIRTUAL_ENV_DISABLE_PROMPT": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "BASH_SILENCE_DEPRECATION_WARNING": "1",
        }

    def follow(self, page: Path) -> None:
        """Do all that a page says.

        Raises:
            AssertionError: Something else is seen than the page says.
        """
        for step in self._steps(page):
            self._do(step)
        for name, terminal in self._terminals.items():
            assert not terminal.left(), f"{page.name}: at its end the terminal {name or 'without a name'} has\n{terminal.left()}"

    def catch_up(self, pages: Iterable[Path]) -> None:
        """Have what pages leave behind without following them: files, folders, and what is installed."""
        for page in pages:
            for step in self._steps(page):
                if step.file or step.typed.startswith(("mkdir ", "cd ", "source ", "python3 ", "pip ")):
                    self._do(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for terminal in self._terminals.values():
            terminal.close()

    def _steps(self, page: Path) -> Iterator[Step]:
        for step in steps(page):
            typed, text = step.typed, step.text
            for of_page, here in self._instead.items():
                typed, text = typed.replace(of_page, here), text.replace(of_page, here)
            yield evolve(step, typed=typed, text=text)

    def _do(self, step: Step) -> None:
        if step.file:
            (self._project / step.file).write_text(step.text, "utf-8")
            return
        if step.terminal not in self._terminals:
            self._terminals[step.terminal] = Terminal(self._folder, self._environ, self._seen)
        terminal = self._terminals[step.terminal]
        if step.typed == "^C":
            terminal.interrupt()
        elif step.typed:
            terminal.type(self._command(step.typed))
        goes_on = bool(step.terminal) and step.typed != "^C"
        wrong = (terminal.until_seen if goes_on else terminal.until_prompt)(pattern_of(step.text))
        assert wrong is None, f"{step}: {step.typed or 'then'!r} was to show\n{plain(step.text)}\nand showed\n{wrong}"

    def _seen(self, text: str) -> str:
        """What a reader sees, who has the plugins alone that the pages have installed, and takes his time."""
        lines = (line for line in plain(text).splitlines(keepends=True) if not TOO_QUICK.match(line))
        plugins = ((PLUGIN.match(line), line) for line in lines)
        return "".join(line for found, line in plugins if found is None or found[1] in self._installed)

    def _command(self, typed: str) -> str:
        words = shlex.split(typed)
        if words[:2] == ["pip", "install"]:
            names = [re.split(r"[\[=<>]", word)[0] for word in words[2:] if not word.startswith("-")]
            self._installed |= set(names)
            if self._mapped:
                for name in names:
                    importlib.metadata.version(name)
                return "true"
        if self._mapped and words[:3] == ["python3", "-m", "venv"]:
            activate = self._project / words[3] / "bin" / "activate"
            activate.parent.mkdir(parents=True)
            activate.write_text(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")
            return "true"
        return typed
