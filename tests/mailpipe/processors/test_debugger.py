"""``debugger``: one log line per mail."""

import logging
from typing import Any

import pytest

from mailpipe.chain import Settings
from mailpipe.runner import Chain

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def logged(envelope: Any, caplog: pytest.LogCaptureFixture, **options: Any) -> list[str]:
    caplog.set_level(logging.INFO, "mailpipe.debugger")
    await Chain("debugger | discard", settings={"debugger": Settings(options=options)})._judged(envelope)  # noqa: SLF001
    return [record.getMessage() for record in caplog.records if record.name == "mailpipe.debugger"]


async def test_says_who_to_whom_and_what(mail: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With the queue id."""
    envelope = mail()
    (line,) = await logged(envelope, caplog)

    for said in (envelope.queue_id, "alice@example.net", "bob@example.org", "'hello'", "192.0.2.7"):
        assert said in line


async def test_no_mail_writes_a_line_of_its_own(mail: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Controls stand escaped."""
    envelope = mail(
        b"Subject: =?utf-8?q?a=0Ab?=\r\nX: =?utf-8?q?=1B[2J?=\r\n\r\n\x1b[2J\r\n", mail_from="x\ny"
    )
    lines = await logged(envelope, caplog, log_headers=True, log_body=100)

    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)


async def test_off(mail: Any, caplog: pytest.LogCaptureFixture) -> None:
    """go-guerrilla's switch."""
    assert await logged(mail(), caplog, log_received_mails=False, sleep_seconds=0.001) == []
