"""Durable queues behind one Protocol, `Store`: in memory, and in an SQLite file."""

from dispatcher.stores.base import (
    Amount,
    Capabilities,
    Counts,
    Dead,
    Leased,
    Nack,
    Peeked,
    Record,
    Shelf,
    Store,
    Stored,
)
from dispatcher.stores.memory import MemoryStore
from dispatcher.stores.sqlite import SQLiteStore, SQLiteView

__all__ = [
    "Amount",
    "Capabilities",
    "Counts",
    "Dead",
    "Leased",
    "MemoryStore",
    "Nack",
    "Peeked",
    "Record",
    "SQLiteStore",
    "SQLiteView",
    "Shelf",
    "Store",
    "Stored",
]
