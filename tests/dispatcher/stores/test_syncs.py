"""What the system is asked to put on the disk, seen from outside: by strace."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers

STEPS = """
import os, sys, anyio
from dispatcher.stores import Nack, Record, SQLiteStore

async def main():
    async with SQLiteStore(sys.argv[1], sys.argv[2]) as store:
        await store.create("q")
        os.write(1, b"puts\\n")
        for _ in range(3):
            await store.put([Record(b"x")], ["q"])
        os.write(1, b"leases\\n")
        leased = [one for _ in range(3) for one in await store.lease("q", 1)]
        await store.extend([one.tag for one in leased], 60.0)
        await store.counts("q")
        os.write(1, b"settles\\n")
        await store.settle([leased[0].tag])
        await store.settle(nacks=[Nack(leased[1].tag)])
        os.write(1, b"end\\n")

anyio.run(main)
"""


@pytest.mark.parametrize(
    ("durability", "wanted"),
    [("commit", {"puts": 3, "leases": 0, "settles": 2}), ("os", {"puts": 0, "leases": 0, "settles": 0})],
)
def test_one_sync_of_the_log_per_confirmed_step(
    durability: str, wanted: dict[str, int], tmp_path: Path
) -> None:
    """Before a put or an ack is confirmed the log is synced, once; for a lease never; with "os" never."""
    log = tmp_path / "strace"
    command = [servers.binary("strace"), "-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,write"]
    command += ["-e", "signal=none", "-o", str(log), sys.executable, "-c", STEPS]
    subprocess.run(
        [*command, str(tmp_path / "q.db"), durability],
        check=True,
        capture_output=True,
        timeout=50,
        cwd=Path(__file__).parents[3],
    )
    synced: dict[str, int] = {}
    phase = "opening"
    for line in log.read_text().splitlines():
        if told := re.search(r'write\(1<[^>]*>, "(\w+)\\n"', line):
            phase = told[1]
        elif re.search(r"f(data)?sync\(\d+<[^>]*-wal>", line):
            synced[phase] = synced.get(phase, 0) + 1
    assert synced.get("opening", 0) >= (durability == "commit")
    assert {name: synced.get(name, 0) for name in wanted} == wanted
