"""What the system is asked to put on the disk, seen from outside: by strace."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers

SCRIPT = """
import asyncio, os, sys
from mailpipe.steps import Place
from mailpipe.storages.maildir import MaildirStorage
from mailpipe.storages.sql import SqlStorage
from mailpipe.testing import envelope

class View(list):
    attempt = 1
    items = property(list)

async def main():
    storage = {"sql": SqlStorage, "maildir": MaildirStorage}[sys.argv[1]]()
    await storage.setup(Place(data=sys.argv[2]))
    os.write(2, b"opened\\n")
    for number in range(5):
        batch = View(envelope(b"mail %d" % other) for other in range(4))
        await storage.run(lambda: storage(batch))
        os.write(2, b"kept\\n")
    await storage.teardown()

asyncio.run(main())
"""


@pytest.mark.parametrize(("storage", "files", "folders"), [("sql", 1, 0), ("maildir", 4, 1)])
def test_every_batch_is_synced_before_it_is_kept(
    storage: str, files: int, folders: int, tmp_path: Path
) -> None:
    """Between two batches that count as kept: the syncs that the durability promises, in one group."""
    log = tmp_path / "strace"
    calls = "trace=fsync,fdatasync,write"
    command = [servers.binary("strace"), "-f", "-qq", "-e", calls, "-e", "signal=none", "-o", str(log)]
    subprocess.run(
        [*command, sys.executable, "-c", SCRIPT, storage, str(tmp_path / "data")],
        check=True,
        capture_output=True,
        timeout=50,
    )
    batches: list[list[str]] = []
    for line in log.read_text(errors="replace").splitlines():
        call = line.split(maxsplit=1)[1]
        if call.startswith(('write(2, "opened', 'write(2, "kept')):
            batches.append([])
        elif batches and call.startswith(("fsync(", "fdatasync(")):
            batches[-1].append(call.partition("(")[0])

    for calls_made in batches[:5]:
        assert calls_made.count("fdatasync") >= files
        assert calls_made.count("fsync") >= folders
    # The first of a database also writes the log's own header.
    assert all(len(calls_made) == files + folders for calls_made in batches[1:5])
