"""The repository's Markdown becomes the pages of the site: under the site's addresses, with links that lead to pages of it.

Pages are written to be read where the repository is, and hold nothing that is for the site alone. What the site needs beside
is added here: the navigation, and a page for each file that is linked and is no page itself.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    "tutorial": "Tutorial",
    "how-to": "How-to",
    "plugins": "Plugins",
    "reference": "Reference",
    "explanation": "Explanation",
    "changelog": "Changelog",
}
#: A fence, code, or a link's target: only the last is looked at.
LINK = re.compile(
    r"""(?xms)
    ^[ ]*(?P<fence>`{3,}|~{3,}) .*? ^[ ]*(?P=fence)[`~]*[ ]*$
    | (?P<ticks>`+) (?:[^\n]|\n(?![ ]*\n))*? (?P=ticks)
    | (?P<before>\]\(|^[ ]*\[[^\]\n]+\]:[ ]*) (?P<target>[^)\s]+)
    """
)
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "sh", ".ini": "ini"}


def found() -> dict[Path, str]:
    """The Markdown files that are pages, with their names on the site."""
    pages = {
        ROOT / "README.md": "overview",
        ROOT / "CHANGELOG.md": "changelog/index",
        ROOT / "benchmarks/README.md": "benchmarks",
    }
    for file in sorted(ROOT.glob("docs/**/*.md")):
        inside = file.relative_to(ROOT / "docs").with_suffix("")
        pages[file] = (inside.with_name("index") if inside.name == "README" else inside).as_posix()
    for file in sorted(ROOT.glob("plugins/*/README.md")):
        pages[file] = f"plugins/{file.parent.name}"
    for file in sorted(ROOT.glob("plugins/*/CHANGELOG.md")):
        pages[file] = f"changelog/{file.parent.name}"
    return pages


class Pages:
    """All pages of the site.

    Attributes:
        texts: The text of each, by its name on the site.
        sources: The file that each was made of.
        problems: What is wrong with links, each with its page and line.
    """

    def __init__(self) -> None:
        self._names = found()
        self._linked: dict[Path, str] = {}
        self.problems: list[str] = []
        self.sources = {name: file for file, name in self._names.items()}
        self.texts = {name: self._read(file, name) for file, name in self._names.items()}
        self.texts.update({name: self._show(file, name) for file, name in self._linked.items()})
        self._navigate()

    def write(self, folder: Path) -> None:
        """Write what has changed, and remove what is no page any more."""
        wanted = {folder / f"{name}.md": text for name, text in self.texts.items()}
        for file, text in wanted.items():
            if not file.exists() or file.read_text("utf-8") != text:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, "utf-8")
        for file in folder.glob("**/*"):
            if file.is_file() and file not in wanted:
                file.unlink()
            elif file.is_dir() and not any(folder in each.parents and file in each.parents for each in wanted):
                shutil.rmtree(file)

    def _read(self, file: Path, name: str) -> str:
        text = file.read_text("utf-8")

        def lead(match: re.Match[str]) -> str:
            target = match["target"]
            if target is None or re.match(r"[a-z]+:|#", target):
                return match[0]
            return match["before"] + self._target(file, name, target, text.count("\n", 0, match.start("target")) + 1)

        text = LINK.sub(lead, text)
        if name.startswith("changelog/") and name != "changelog/index":
            text = text.replace("# Changelog\n", f"# Changelog of {file.parent.name}\n", 1)
        return text

    def _target(self, file: Path, name: str, target: str, line: int) -> str:
        """What the link is on the site. One that leads nowhere is noted; it leads to its own page, lest Sphinx say it again."""
        path, _, anchor = target.partition("#")
        there = Path(os.path.normpath(file.parent / path))
        if there.is_dir() and there / "README.md" in self._names:
            there /= "README.md"
        if path.startswith("/") or not there.exists() or ROOT not in (there, *there.parents):
            self.problems.append(f"{file.relative_to(ROOT)}:{line}: {target} leads to no file of the repository")
            return f"{PurePosixPath(name).name}.md"
        if there in self._names:
            to = f"{self._names[there]}.md" + (f"#{anchor}" if anchor else "")
        else:
            to = self._linked.setdefault(there, f"files/{there.relative_to(ROOT).as_posix().lstrip('.')}") + ".md"
        return os.path.relpath(to, PurePosixPath(name).parent)

    def _show(self, file: Path, name: str) -> str:
        """A page that shows a file, or lists a folder."""
        self.sources[name] = file
        head = f"---\norphan: true\n---\n\n# `{file.relative_to(ROOT).as_posix()}`\n\n"
        if file.is_dir():
            return head + "".join(f"- `{each.name}`\n" for each in sorted(file.iterdir()) if each.name != "__pycache__")
        text = file.read_text("utf-8")
        fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text) or [""]))
        return f"{head}{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"

    def _navigate(self) -> None:
        """Give each folder a page that leads to the pages and folders in it."""
        order = [name for index in sorted(self.texts, key=len) if f"{index}/".endswith("index/") for name in self._leads(index)]

        def place(name: str) -> tuple[int, str]:
            return (order.index(name) if name in order else len(order), name)

        names = [name for name in self.texts if "/" in name and not name.startswith("files/")]
        folders = {folder.as_posix() for name in names for folder in PurePosixPath(name).parents} - {"."}
        for folder in sorted(folders):
            index = f"{folder}/index"
            inside = [name for name in names if PurePosixPath(name).parent.as_posix() == folder and name != index]
            inside += [f"{each}/index" for each in folders if PurePosixPath(each).parent.as_posix() == folder]
            if folder == "explanation":
                inside.append("benchmarks")
            entries = sorted(inside, key=place)
            if index in self.texts:
                shown = folder == "changelog"
                self.texts[index] += toctree(entries, "Plugins" if shown else "", hidden=not shown)
            else:
                self.texts[index] = f"# {SECTIONS.get(folder) or PurePosixPath(folder).name.capitalize()}\n{toctree(entries)}"
        sections = [f"{folder}/index" for folder in SECTIONS if folder in folders]
        unknown = [f"{folder}/index" for folder in sorted(folders) if "/" not in folder and folder not in SECTIONS]
        self.texts["index"] += toctree(["overview", *sections, *unknown], hidden=True)

    def _leads(self, name: str) -> Iterator[str]:
        """The pages that a page links to, in the order in which it does."""
        for match in LINK.finditer(self.texts[name]):
            if match["target"] and not re.match(r"[a-z]+:|#", match["target"]):
                path = PurePosixPath(name).parent / match["target"].partition("#")[0]
                yield os.path.normpath(path).removesuffix(".md")


def toctree(names: list[str], caption: str = "", *, hidden: bool = False) -> str:
    """The directive that puts pages into the navigation."""
    titles = {name: name.removeprefix("changelog/") for name in names if name.startswith("changelog/")}
    titles |= {"overview": "Overview", **{f"{folder}/index": title for folder, title in SECTIONS.items()}}
    entries = "".join(f"{titles[name]} </{name}>\n" if name in titles else f"/{name}\n" for name in names)
    options = [":maxdepth: 1", *([f":caption: {caption}"] if caption else []), *([":hidden:"] if hidden else [])]
    return "\n```{toctree}\n" + "\n".join(options) + f"\n\n{entries}```\n"
