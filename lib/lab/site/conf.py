"""Sphinx settings of the site; `lib.lab.site` copies this file beside the pages it makes."""

import importlib
import importlib.util
from pathlib import Path

from lib import __version__, root
from lib.lab.site import pages

project, author, copyright, release = "Tenfold", "The Tenfold authors", "The Tenfold authors, Apache-2.0", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence"]
myst_dmath_double_inline = True  # a formula within a sentence ends where it ends, not with the paragraph
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
html_theme = "furo"
html_title = "Tenfold"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tenfold.css"]

# MathJax from the package index, so that formulas show without a network.
_mathjax = importlib.util.find_spec("sphinx-mathjax-offline")
assert _mathjax is not None
assert _mathjax.origin is not None
html_static_path.append(str(Path(_mathjax.origin).parent / "static"))
mathjax_path = "mathjax/tex-mml-chtml.js"


def setup(app):
    """Connect Sphinx's hook: docstrings are prose with code in backticks, not reStructuredText."""
    app.connect("autodoc-process-docstring", pages.as_prose)
    for room in (path.parent.name for path in sorted((root() / "lib").glob("*/__init__.py"))):
        module = importlib.import_module(f"lib.{room}")
        for name in getattr(
            module, "__all__", ()
        ):  # names that a room hands out on demand are seen once they are there
            setattr(module, name, getattr(module, name))
