"""Sphinx configuration: ``make docs`` builds with warnings as errors."""

import importlib.metadata

import attrs
from sphinx.application import Sphinx

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


_COLON = "\ue000"  # a private character: no docstring has it


def _hide_colon(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading ``"Name: the rest"`` of an attribute's docstring as its type."""
    if what in {"attribute", "property", "data"} and lines:
        lines[0] = lines[0].replace(":", _COLON)


def _show_colon(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def _attrs_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None] | None:
    """Show attrs classes with their plain defaults; attrs' own ``__init__`` has names of its making there."""
    if (
        what != "class"
        or not isinstance(obj, type)
        or not attrs.has(obj)
        or not signature
        or "=" not in signature
    ):
        return None
    parts: list[str] = []
    for field in attrs.fields(obj):
        if not field.init:
            continue
        if field.kw_only and "*" not in parts:
            parts.append("*")
        plain = field.default is None or isinstance(field.default, bool | int | float | str | tuple)
        default = "" if field.default is attrs.NOTHING else f"={field.default!r}" if plain else "=..."
        parts.append(field.alias + default)
    return f"({', '.join(parts)})", returns


def setup(app: Sphinx) -> None:
    """Stand around napoleon, which comes at 500."""
    app.connect("autodoc-process-docstring", _hide_colon, priority=400)
    app.connect("autodoc-process-docstring", _show_colon, priority=600)
    app.connect("autodoc-process-signature", _attrs_signature)
