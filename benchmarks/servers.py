"""
Servers of our own for one row: started in processes and folders of their own, and ended.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

__all__ = ["Server", "folder", "listening", "mailpipe", "stored"]


@attrs.frozen
class Server:
    """A running server."""

    port: int
    pid: int


@contextmanager
def folder() -> Iterator[Path]:
    """A folder on the disk that ``TMPDIR`` names, deleted afterwards; other users may go through it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        place = Path(name)
        place.chmod(0o755)  # Postfix's own user has to get through
        yield place


@contextmanager
def listening(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """
    Start a server that prints ``listening on HOST:PORT``, and end it with SIGTERM.

    Args:
        command: Starts it.

        log: Where its stderr goes.

        environment: Variables that it has besides ours.

    Raises:
        RuntimeError: If it prints something else.
    """
    with (
        log.open("w") as errors,
        # A group of its own: a tracer that is told to end lets go of its server, and leaves it running.
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                process.kill()
                msg = f"{' '.join(command)} did not start: {line}{log.read_text()[-800:]}"
                raise RuntimeError(msg)
            yield Server(int(line.rsplit(":", 1)[1]), process.pid)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def mailpipe(
    place: Path,
    name: str,
    config: str,
    *,
    under: Sequence[str] = (),
    workers: int = 1,
    uvloop: bool = True,
) -> Iterator[Server]:
    """
    Start ``mailpipe serve``.

    Args:
        place: Folder for its configuration, log and data.

        name: Of those.

        config: TOML.

        under: A program, with arguments, that runs it.

        workers: Processes that serve.

        uvloop: False: asyncio's own loop, as if uvloop were not installed.
    """
    file = place / f"{name}.toml"
    file.write_text(config)
    command = [
        *under,
        sys.executable,
        "-m",
        "mailpipe",
        "serve",
        "-c",
        str(file),
        "--data",
        str(place / name),
        "--workers",
        str(workers),
    ]
    # Found before the real one, here and in the workers.
    hidden = place / f"{name}-hidden"
    hidden.mkdir()
    (hidden / "uvloop.py").write_text("raise ImportError\n")
    path = os.environ.get("PYTHONPATH")
    environment = {} if uvloop else {"PYTHONPATH": os.pathsep.join([str(hidden), *([path] if path else [])])}
    with listening(command, place / f"{name}.log", environment) as server:
        yield server


def stored(place: Path, name: str) -> int:
    """How many mails that server has stored, as its command line tells."""
    command = [sys.executable, "-m", "mailpipe", "list", "--json", "-c", str(place / f"{name}.toml")]
    listed = subprocess.run(
        [*command, "--data", str(place / name)], capture_output=True, text=True, check=True
    )
    return len(listed.stdout.splitlines())
