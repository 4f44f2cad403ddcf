"""Build the site: `nox -s docs` does, and then looks at it in a browser.

Warnings are errors. They name the page as it is in the repository.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from pages import ROOT, Pages  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "docs", help="where pages/ and html/ go")
    parser.add_argument("--mermaid", type=Path, required=True, help="the folder of mermaid.min.js, for the diagrams")
    options = parser.parse_args()
    pages, folder = Pages(), options.output.resolve() / "pages"
    pages.write(folder)
    for problem in pages.problems:
        print(problem, file=sys.stderr)
    built = sphinx(pages, folder, options.output.resolve() / "html", options.mermaid.resolve())
    if built and not pages.problems:
        print(f"{len(pages.texts)} pages: {options.output / 'html' / 'index.html'}")
        return 0
    return 1


def sphinx(pages: Pages, folder: Path, html: Path, mermaid: Path) -> bool:
    """Run Sphinx, strictly; whether there was nothing to complain of."""
    strict = ["-W", "--keep-going", "-n", "-q", "-j", "auto", "-E", "-a"]  # all anew: links to what has gone are dead
    settings = ["-D", f"html_static_path={HERE / 'static'},{mermaid}"]
    command = [sys.executable, "-m", "sphinx", *strict, "-c", str(HERE), *settings, "-b", "html", str(folder), str(html)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603 — no words of others
    for line in done.stderr.splitlines():
        print(repository(line, pages, folder), file=sys.stderr)
    return done.returncode == 0


def repository(line: str, pages: Pages, folder: Path) -> str:
    """A line of Sphinx's, with the name of the file that the page was made of."""

    def source(match: re.Match[str]) -> str:
        file = pages.sources.get(match["name"])
        return f"{file.relative_to(ROOT)}" if file else f"{match['name']} (made by docs/site/pages.py)"

    return re.sub(rf"{re.escape(str(folder))}/(?P<name>\S+?)\.md", source, line)


if __name__ == "__main__":
    sys.exit(main())
