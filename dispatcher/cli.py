"""``dispatcher broker serve`` and ``dispatcher queue``: for who runs it, not for who imports it."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

from dispatcher.broker import BrokerClient, BrokerError, ConfigError, wire
from dispatcher.broker.address import Address
from dispatcher.broker.serve import serve, socket_note
from dispatcher.errors import OptionError, StoreError, StoreOwned
from dispatcher.stores.base import Shelf
from dispatcher.stores.sqlite import SQLiteStore, SQLiteView

__all__ = ["main"]

DONE, FAILED, MISUSED = 0, 1, 2

_STORE = "a store's file, or the address of a broker (unix:/path, tcp:host:port)"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Returns:
        0 done, 1 failed, 2 wrong use (a configuration that cannot be used is wrong use).
    """
    asked = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = asked.command
    try:
        command(asked)
    except (ConfigError, OptionError) as error:
        sys.stderr.write(f"dispatcher: {error}\n")
        return MISUSED
    except StoreOwned as error:
        sys.stderr.write(
            f"dispatcher: {error}; give its socket's address instead of the file, if it has one\n"
        )
        return FAILED
    except (StoreError, BrokerError, OSError) as error:
        sys.stderr.write(f"dispatcher: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dispatcher", description="Durable queues, and a broker over them.")
    groups = parser.add_subparsers(required=True, metavar="broker|queue")

    broker = groups.add_parser("broker", help="one stream of messages for many subscribers")
    actions = broker.add_subparsers(required=True, metavar="serve")
    served = actions.add_parser("serve", help="serve a broker until SIGTERM; SIGHUP reads its file again")
    served.add_argument("file", type=Path, help="broker.toml")
    served.set_defaults(command=_serve)

    queue = groups.add_parser("queue", help="look at queues, and move what lies in them")
    actions = queue.add_subparsers(required=True, metavar="ls|peek|dead|retry|purge")
    shelves = [shelf.value for shelf in Shelf]

    def add(name: str, command: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text)
        made.add_argument("store", help=_STORE)
        if name != "ls":
            made.add_argument("queue", help="its name; of a subscription: topic/subscription")
        made.add_argument("--json", action="store_true", help="one JSON object a line")
        made.set_defaults(command=command)
        return made

    add("ls", _ls, "all queues, in numbers")
    for name, text in (("peek", "messages of one shelf, in the order of delivery"), ("dead", "dead letters")):
        made = add(name, _peek, text)
        made.add_argument("--limit", type=_limit, default=50, help="so many at most (50)")
        made.add_argument("--after", help="go on behind this cursor")
        if name == "peek":
            made.add_argument("--shelf", choices=shelves, default="ready", help="which (ready)")
        else:
            made.set_defaults(shelf="dead")
    for name, command, text in (
        ("retry", _retry, "put dead letters back to the end, attempts at 0"),
        ("purge", _purge, "delete dead letters, or what lies on another shelf"),
    ):
        made = add(name, command, text)
        made.add_argument("ids", nargs="*", help="which")
        made.add_argument("--all", action="store_true", help="all of the shelf")
        allowed = ["dead", "quarantined"] if name == "retry" else [one for one in shelves if one != "leased"]
        made.add_argument("--shelf", choices=allowed, default="dead", help="which (dead)")
    return parser


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= wire.RECEIVE_MAX:
        msg = f"has to be a whole number, 1 to {wire.RECEIVE_MAX}, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _serve(asked: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    anyio.run(serve, asked.file)


# -- looking


def _ls(asked: argparse.Namespace) -> None:
    found: Mapping[str, Any]
    address = _address(asked.store)
    if address is not None:
        found = _ask(address, "queues")["queues"]
    else:
        with SQLiteView(asked.store) as view:
            found = {name: wire.counts_to(view.counts(name)) for name in view.queues()}
    if asked.json:
        for name, counts in found.items():
            _say(json.dumps({"queue": name, **counts}, ensure_ascii=False))
        return
    width = max([len(name) for name in found], default=0) + 2
    shelves = [shelf.value for shelf in Shelf]
    _say(f"{'queue':{width}}" + "".join(f"{shelf:>13}" for shelf in shelves) + f"{'oldest':>11}")
    for name, counts in found.items():
        age = counts["oldest_age"]
        numbers = "".join(f"{counts[shelf]['items']:>13}" for shelf in shelves)
        _say(f"{name:{width}}{numbers}{'-' if age is None else f'{age:.0f} s':>11}")


def _peek(asked: argparse.Namespace) -> None:
    address = _address(asked.store)
    if address is not None:
        found: list[dict[str, Any]] = []
        after = asked.after
        while len(found) < asked.limit:  # large ones come in several answers
            fields = {"queue": asked.queue, "shelf": asked.shelf, "after": after}
            page = _ask(address, "peek", limit=asked.limit - len(found), **fields)["messages"]
            if not page:
                break
            found += page
            after = page[-1]["cursor"]
    else:
        with SQLiteView(asked.store) as view:
            peeked = view.peek(asked.queue, asked.limit, shelf=Shelf(asked.shelf), after=asked.after)
        found = [wire.peeked_to(one) for one in peeked]
    for one in found:
        if asked.json:
            _say(json.dumps(one, ensure_ascii=False))
            continue
        put = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["put_at"]))
        key = "" if one["key"] is None else f" key {one['key']!r}"
        payload = one.get("payload", "")[:100] if "payload" in one else f"base64 {one['payload64'][:100]}"
        error = "" if one["error"] is None else f"\n    {one['error']!r:.500}"
        _say(f"{one['id']}  {put}  attempts {one['attempts']}{key}  {payload!r}{error}")


# -- moving


def _retry(asked: argparse.Namespace) -> None:
    _move(asked, "retry", "put back")


def _purge(asked: argparse.Namespace) -> None:
    _move(asked, "purge", "deleted")


def _move(asked: argparse.Namespace, op: str, done: str) -> None:
    if bool(asked.ids) == asked.all:
        raise OptionError(option=op, rule="takes either ids or --all", value=" ".join(asked.ids) or None)
    ids = asked.ids or None
    fields = {"queue": asked.queue, "ids": ids, "shelf": asked.shelf}
    address = _address(asked.store) or _owner(Path(asked.store))
    if address is not None:
        count = _ask(address, op, **fields)["count"]
    else:
        count = anyio.run(_move_here, Path(asked.store), op, asked.queue, ids, Shelf(asked.shelf))
    _say(json.dumps({"count": count}) if asked.json else f"{count} {done}")


async def _move_here(path: Path, op: str, queue: str, ids: list[str] | None, shelf: Shelf) -> int:
    """Nobody has it open, so we do; the owner's lock decides."""
    with SQLiteView(path):
        pass  # refuses what is no store, which opening would make one
    async with SQLiteStore(path) as store:
        if op == "retry":
            return await store.redrive(queue, ids, shelf=shelf)
        return await store.purge(queue, ids, shelf=shelf)


def _owner(path: Path) -> Address | None:
    """Where the broker that owns *path* listens, if one does."""
    note = socket_note(path)
    try:
        text = note.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    address = Address.parse(text, option=str(note))
    try:
        _ask(address, "ping")
    except BrokerError:  # it was killed; whoever owns the store now has no socket
        return None
    return address


def _address(text: str) -> Address | None:
    return Address.parse(text, option="store") if text.startswith(("unix:", "tcp:")) else None


def _ask(address: Address, op: str, **fields: object) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        async with BrokerClient(address) as client:
            return await client.request(op, **fields)

    return anyio.run(ask)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
