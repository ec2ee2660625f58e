"""
The command line of mailpipe.
"""

from mailpipe.cli.commands import app, main

__all__ = ["app", "main"]
