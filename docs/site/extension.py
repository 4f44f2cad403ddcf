"""What the site needs beside Sphinx's own: the directives behind two kinds of fences, and code that is a link where it can be."""

from __future__ import annotations

import ast
import enum
import html
import inspect
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from docutils import nodes
from docutils.utils import get_source_line
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from repid_core import Broker

logger = logging.getLogger(__name__)


class Diagram(SphinxDirective):
    """A fence `mermaid`: the browser draws it."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        node = nodes.raw("", f'<pre class="mermaid">{html.escape(text)}</pre>', format="html", classes=["diagram"])
        return [node]


def add_mermaid(app: Sphinx, _page: str, _template: str, _context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Load it on pages with diagrams alone: it is large."""
    if doctree is not None and any("diagram" in node["classes"] for node in doctree.findall(nodes.raw)):
        app.add_js_file("mermaid.min.js", loading_method="defer")
        app.add_js_file("diagrams.js", loading_method="defer")


class Api(SphinxDirective):
    """A fence `api`: what the docstrings of these names say, one name in a line."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        described = described_in(Path(self.env.srcdir))
        lines: list[str] = []
        for name in self.content:
            try:
                lines += directives(name.strip(), described)
            except (ImportError, AttributeError, ValueError) as error:
                logger.warning("%s", error, location=self.get_location())
        text = "\n".join(lines)
        made = self.parse_text_to_nodes(f"````{{eval-rst}}\n{text}\n````\n", allow_section_headings=False)
        for node in (each for top in made for each in top.findall(addnodes.pending_xref)):
            if not Path(get_source_line(node)[0] or "?").exists():  # signatures do not say where they are
                node.source, node.line = str(self.env.doc2path(self.env.docname)), self.lineno
        return made


@cache
def described_in(pages: Path) -> tuple[Any, ...]:
    """The objects that are described on any page."""
    fences = [text for page in pages.rglob("*.md") for text in re.findall(r"(?ms)^```api\n(.*?)^```$", page.read_text("utf-8"))]
    return tuple(each for fence in fences for name in fence.split() if (each := found(name)) is not None)


def found(name: str) -> Any:
    """The object of a dotted name; None if there is none, which its page says."""
    try:
        return resolved(name)
    except (ImportError, AttributeError, ValueError):
        return None


def resolved(name: str) -> Any:
    """The object of a dotted name."""
    module, _, own = name.rpartition(".")
    return getattr(import_module(module), own)


def directives(name: str, described: tuple[Any, ...]) -> list[str]:
    """The directives that describe a name."""
    value = resolved(name)
    if inspect.isroutine(value):
        return [f".. autofunction:: {name}", ""]
    if not inspect.isclass(value):
        module, _, own = name.rpartition(".")
        return [f".. py:data:: {name}", "", *(f"   {line}" for line in comment(module, own)), ""]
    kind = "exception" if issubclass(value, BaseException) else "class"
    if issubclass(value, Broker) and value.__module__ != Broker.__module__:  # the contract describes its methods
        return [f".. autoclass:: {name}", "   :members: from_settings", ""]
    options = ["   :members:"]
    if not getattr(value, "_is_protocol", False):  # Sphinx asks `issubclass` of protocols, which refuse
        others = [base.__name__ for base in value.__mro__[1:] if not internal(base, described)]
        options.append(f"   :inherited-members: {', '.join(others)}")
    if any(base is not object and base.__module__ != "typing" for base in shown_bases(value, described)):
        options.append("   :show-inheritance:")
    if issubclass(value, enum.Enum):
        options.append("   :undoc-members:")
    return [f".. auto{kind}:: {name}", *options, ""]


def internal(base: type, described: tuple[Any, ...]) -> bool:
    """Whether a base is an implementation's own affair: its members are those of the classes that people use."""
    return base.__module__.startswith("repid") and not any(base is each for each in described)


def shown_bases(cls: type, described: tuple[Any, ...]) -> list[Any]:
    """A class's bases, the public ones of internal ones in their place."""
    bases: list[Any] = []
    for base in getattr(cls, "__orig_bases__", cls.__bases__):
        origin = getattr(base, "__origin__", base)
        bases += shown_bases(origin, described) if isinstance(origin, type) and internal(origin, described) else [base]
    return list(dict.fromkeys(bases))


def comment(module: str, name: str) -> list[str]:
    """What is written at the assignment of a name that is neither class nor function, wherever a module has it from."""
    analyzer = ModuleAnalyzer.for_module(module)
    if lines := analyzer.find_attr_docs().get(("", name)):
        return [*lines]
    for node in ast.walk(ast.parse(analyzer.code)):
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return comment(node.module, name)
    raise ValueError(f"{module}.{name} has no comment that begins with '#:', and no docstring")


def leave_out(_app: Sphinx, _what: str, name: str, value: Any, skip: bool, _options: Any) -> bool | None:
    """Tests of the suites are the contract, which the guides have; of what helps them, authors use what is theirs to override."""
    if name.startswith("test_"):
        return True
    home = getattr(value, "__module__", None) or ""
    helper = home.startswith("repid_core.testing.conformance.") and inspect.isroutine(value) and not hasattr(value, "__hook__")
    return True if helper and not skip and "." in getattr(value, "__qualname__", "") else None


def keep_underscores(_app: Sphinx, _what: str, _name: str, _value: Any, _options: Any, lines: list[str]) -> None:
    """An argument `id_` is not a reference to `id`."""
    lines[:] = [re.sub(r"^(\s*:\w+ \w+)_:", r"\1\\_:", line) for line in lines]


def own_defaults(_app: Sphinx, value: Any, _bound: bool) -> None:
    """The signature that attrs gives a class has the defaults themselves; the source that it makes has how they are looked up."""
    code = getattr(value, "__code__", None)
    if code is not None and code.co_filename.startswith("<attrs generated") and "__signature__" in vars(value):
        del value.__signature__


def replace_bases(app: Sphinx, name: str, _value: type, _options: Any, shown: list[Any]) -> None:
    described = described_in(Path(app.srcdir))
    cls = next((each for each in described if each is _value), None)
    if cls is not None:
        shown[:] = shown_bases(cls, described)


class Maybe(PyXRefRole):
    """Code, and a link if it names something that is described."""

    def __init__(self) -> None:
        super().__init__(innernodeclass=nodes.literal)

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        title, target = super().process_link(env, refnode, has_explicit_title, title, target)
        refnode["refdomain"], refnode["reftype"], refnode["maybe"] = "py", "obj", True
        return title, target


def elsewhere(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Find what is named without its module, or by the module that it is written in."""
    target = node["reftarget"].removesuffix("()")
    if node.get("refdomain") != "py" or not target.replace(".", "").replace("_", "").isalnum():
        return None
    objects = env.domains.python_domain.objects
    short = target.rpartition(".")[2] if target.startswith("repid") else target
    matches = [name for name in objects if name.endswith(f".{short}") and (not node.get("maybe") or is_named(name, short))]
    if len(matches) != 1:
        return None
    entry = objects[matches[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, [content], matches[0])


def is_named(name: str, short: str) -> bool:
    """Whether prose that says `short` means `name`: what modules have, with or without what is in it; no mere attribute."""
    return short[0].isupper() or name.rpartition(".")[0].rpartition(".")[2].islower()


def is_in_order(_app: Sphinx, domain: Any, node: addnodes.pending_xref) -> bool | None:
    """Whether it does not matter that a reference leads nowhere: others' names, and type variables, have no page here."""
    if node.get("maybe"):
        return True
    if node.get("refdomain") != "py":
        return None
    value = found(node["reftarget"])
    if value is None:
        return None
    ours = node["reftarget"].startswith("repid")
    return True if not ours or isinstance(value, TypeVar | ParamSpec) else None


class TableEntries(SphinxTransform):
    """What a table begins its rows with, as code, is found by the search: settings, options, metrics, errors."""

    default_priority = 500

    def apply(self, **_: Any) -> None:
        for row in self.document.findall(nodes.row):
            cell = row.next_node(nodes.entry)
            if cell is None or isinstance(row.parent, nodes.thead) or not cell.children:
                continue
            first = next((node for node in cell[0].children if node.astext().strip()), None) if cell.children else None
            names = [node.astext() for node in cell.findall(nodes.literal)] if isinstance(first, nodes.literal) else []
            entries = [
                ("single", name.replace(";", ","), anchor, "main", None) for name in names if (anchor := self._anchor(row, name))
            ]
            if entries:
                cell.insert(0, addnodes.index(entries=entries))

    def _anchor(self, row: nodes.Element, name: str) -> str:
        if not row["ids"]:
            row["ids"].append(nodes.make_id(f"row-{name}") + f"-{self.env.new_serialno('row')}")
        return row["ids"][0]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("mermaid", Diagram)
    app.add_directive("api", Api)
    app.add_role("maybe", Maybe())
    app.add_transform(TableEntries)
    app.connect("html-page-context", add_mermaid)
    app.connect("missing-reference", elsewhere)
    app.connect("warn-missing-reference", is_in_order)
    app.connect("autodoc-skip-member", leave_out)
    app.connect("autodoc-process-docstring", keep_underscores, priority=900)  # what napoleon makes of it
    app.connect("autodoc-before-process-signature", own_defaults, priority=900)  # after what `autodoc_preserve_defaults` does
    app.connect("autodoc-process-bases", replace_bases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
