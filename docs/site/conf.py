"""Sphinx's configuration of the site; `build.py` starts it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import repid_core

project = "repid-core"
author = "The repid-core authors"
project_copyright = "the repid-core authors"
version = release = repid_core.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "extension"]

myst_enable_extensions = ["alert", "strikethrough"]
myst_fence_as_directive = ["api", "mermaid"]
myst_heading_anchors = 6

autodoc_default_options = {"member-order": "bysource"}
nitpick_ignore = [
    ("py:class", "P"),  # of typing
    ("py:class", "AsyncMock"),  # of unittest
    ("py:class", "repid_core.payload.ArgsBucket"),  # and what is passed on, but not looked into
    ("py:class", "repid_redis.url.RedisURL"),
    ("py:class", "repid_rabbitmq.url.AMQPURL"),
    ("py:class", "repid_s3.settings.Place"),
]
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False  # what overrides the contract without a word of its own is described where the contract is
autodoc_preserve_defaults = True
autodoc_type_aliases = {"RetryPolicy": "repid_core.RetryPolicy", "OnDuplicate": "repid_core.data.OnDuplicate"}
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # the signature has them
suppress_warnings = ["misc.highlighting_failure"]  # what has no highlighting is shown without
default_role = "maybe"  # `code` in docstrings, and a link if it names something
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"repid-core {release}"
html_short_title = "repid-core"
html_favicon = "static/favicon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_use_index = False
html_domain_indices = False
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "default"
pygments_dark_style = "github-dark"

copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor what commands print
