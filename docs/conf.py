"""Sphinx configuration: ``make docs`` builds with warnings as errors."""

import importlib.metadata

project = "dispatcher and mailpipe"
author = "The dispatcher and mailpipe authors"
release = version = importlib.metadata.version("dispatcher-toolkit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
# Single backticks in docstrings link to what they name, where that has a page.
default_role = "py:obj"

html_theme = "furo"
html_title = "dispatcher and mailpipe"
html_static_path: list[str] = []
