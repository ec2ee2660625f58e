"""
Jobs beside the mails of a database: written in the mail's own transaction, so that neither is
without the other after a crash.
"""

from collections.abc import Sequence
from typing import Any

import anyio.to_thread
import sqlalchemy as sa

from mailpipe.steps import Job
from mailpipe.storages._database import Database

__all__ = ["SqlOutbox"]

_ERROR_MAX = 1000


class SqlOutbox:
    """
    The `mailpipe.steps.Outbox` of one table.

    Each call uses a connection of its own, in a worker thread.

    Args:
        database: Open while this is used.

        table: With the columns of `mailpipe.storages._schema.OUTBOX_COLUMNS`.
    """

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._database, self._table = database, table

    async def due(self, name: str, now: float, *, limit: int = 100) -> Sequence[Job]:
        """Jobs of that name due at *now* and not dead, the oldest mail first."""
        columns = self._table.c
        wanted = sa.and_(columns.dead == 0, columns.due_at <= now)
        return await anyio.to_thread.run_sync(self._select, name, wanted, limit)

    async def next_due(self, name: str) -> float | None:
        """When the next job of that name is due; None if there is none."""
        columns = self._table.c
        query = sa.select(sa.func.min(columns.due_at)).where(columns.job == name, columns.dead == 0)

        def look() -> float | None:
            with self._database.engine.connect() as connection:
                at: float | None = connection.execute(query).scalar()
            return at

        return await anyio.to_thread.run_sync(look)

    async def settle(
        self, *, done: Sequence[Job] = (), again: Sequence[Job] = (), dead: Sequence[Job] = ()
    ) -> None:
        """Note the fates of jobs, in one transaction."""
        if done or again or dead:
            await anyio.to_thread.run_sync(self._settle, done, again, dead)

    async def dead(self, name: str) -> Sequence[Job]:
        """Jobs of that name that were given up, the oldest mail first."""
        if not self._database.is_open:  # read from outside, and nothing was ever stored
            return []
        return await anyio.to_thread.run_sync(self._select, name, self._table.c.dead == 1, None)

    async def revive(self, jobs: Sequence[Job], now: float) -> int:
        """Make dead jobs due at *now*, their attempts forgotten; returns how many there were."""

        def change() -> int:
            query = sa.update(self._table).values(dead=0, attempts=0, due_at=now)
            with self._database.writing() as connection:
                return sum(
                    connection.execute(query.where(self._is(job), self._table.c.dead == 1)).rowcount
                    for job in jobs
                )

        return await anyio.to_thread.run_sync(change)

    def _is(self, job: Job) -> sa.ColumnElement[bool]:
        columns = self._table.c
        return sa.and_(columns.queue_id == job.queue_id, columns.job == job.name)

    def _select(self, name: str, wanted: sa.ColumnElement[bool], limit: int | None) -> Sequence[Job]:
        columns = self._table.c
        query = sa.select(self._table).where(columns.job == name, wanted)
        with self._database.engine.connect() as connection:
            rows = connection.execute(query.order_by(columns.queue_id).limit(limit)).all()
        return [_job(row) for row in rows]

    def _settle(self, done: Sequence[Job], again: Sequence[Job], dead: Sequence[Job]) -> None:
        with self._database.writing() as connection:
            for job in done:
                connection.execute(sa.delete(self._table).where(self._is(job)))
            for job in (*again, *dead):
                connection.execute(
                    sa.update(self._table)
                    .where(self._is(job))
                    .values(
                        attempts=job.attempts,
                        due_at=job.due_at,
                        error=job.error.replace("\0", "")[:_ERROR_MAX],
                        dead=int(job in dead),
                    )
                )


def _job(row: sa.Row[Any]) -> Job:
    return Job(name=row.job, queue_id=row.queue_id, attempts=row.attempts, due_at=row.due_at, error=row.error)
