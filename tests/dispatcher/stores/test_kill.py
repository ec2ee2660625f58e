"""``kill -9`` at random moments: what was confirmed holds."""

import os
import random
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from dispatcher.stores.sqlite import SQLiteStore

Child = Callable[..., subprocess.Popen[str]]

ROUNDS = int(os.environ.get("KILL_ROUNDS", "8"))

VICTIM = """
import os, sys, anyio
from dispatcher.stores.base import Dead, Nack, Record
from dispatcher.stores.sqlite import SQLiteStore

def tell(text):
    os.write(1, (text + "\\n").encode())  # one write: a line is told whole, or not

async def produce(store, name):
    for n in range(2000):
        what = f"{name}.{n}"
        await store.put([Record(what.encode(), priority=n % 3)], ["q", "r"])
        tell("put " + what)

async def consume(store, queue):
    while True:
        await store.wait_ready(queue)
        leased = await store.lease(queue, 5)
        texts = [one.payload.decode() for one in leased]
        for text in texts:
            tell(f"got {queue} {text}")
        acked = [one.tag for one in leased[1:]]
        await store.settle(acked, [Nack(one.tag) for one in leased[:1]])
        for text in texts[1:]:
            tell(f"ack {queue} {text}")

async def main():
    async with SQLiteStore(sys.argv[1], sys.argv[2]) as store:
        await store.create("q", "r")
        async with anyio.create_task_group() as tasks:
            for n in range(4):
                tasks.start_soon(produce, store, f"{sys.argv[3]}-{n}")
            tasks.start_soon(consume, store, "q")
            tasks.start_soon(consume, store, "r")

anyio.run(main)
"""


@pytest.mark.parametrize("durability", ["commit", "os"])
def test_what_was_confirmed_holds(durability: str, tmp_path: Path, child: Child) -> None:
    """
    Killed again and again, each time in the middle of its work.

    What was put is there or was given out; what was acked is never given out again; the file is intact.
    """
    path = tmp_path / "q.db"
    chance = random.Random(durability)
    put: set[str] = set()
    got: dict[str, set[str]] = {"q": set(), "r": set()}
    acked: dict[str, set[str]] = {"q": set(), "r": set()}
    for turn in range(ROUNDS):
        victim = child(VICTIM, path, durability, turn)
        assert victim.stdout is not None
        until = chance.randrange(1, 400)
        lines = [victim.stdout.readline() for _ in range(until)]
        assert victim.poll() is None, "it works until it is killed"
        victim.kill()
        lines += victim.stdout.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith("\n"):
                continue
            match line.split():
                case ["put", what]:
                    put.add(what)
                case ["got", queue, what]:
                    assert what not in acked[queue], "given out after its ack was confirmed"
                    got[queue].add(what)
                case ["ack", queue, what]:
                    acked[queue].add(what)
        victim.wait()
        db = sqlite3.connect(path)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()

    async def rest() -> None:
        async with SQLiteStore(path) as store:
            for queue in ("q", "r"):
                left = [one.payload.decode() for one in await store.lease(queue, 1_000_000)]
                assert len(set(left)) == len(left), "once each"
                assert not set(left) & acked[queue], "acked"
                assert put <= set(left) | got[queue], "lost"

    anyio.run(rest)
    assert len(put) > ROUNDS
    assert all(acked.values())
