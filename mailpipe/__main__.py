"""
``python -m mailpipe``; without the ``mail`` extra it says what to install.
"""

import importlib.util
import sys

__all__ = ["main"]

_NEEDED = ("typer", "rich", "cattrs", "sqlalchemy", "structlog")


def main() -> None:
    """Run the command line; ends the process."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        # Not an ImportError somewhere deep: the one thing to do stands in the one line.
        sys.stderr.write(
            f"mailpipe needs {', '.join(missing)}: pip install 'dispatcher-toolkit[mail]'\n",
        )
        sys.exit(1)
    from mailpipe import cli

    cli.main()


if __name__ == "__main__":
    main()
