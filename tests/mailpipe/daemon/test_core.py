"""`Daemon` as a library: zero configuration, own steps, reload, stop; over real sockets."""

import asyncio
import contextlib
import smtplib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dispatcher import Batch
from mailpipe import ConfigError, Daemon, Envelope, Rejected, Reply
from mailpipe.daemon import Event, GatewayClosed, GatewayOpened, Listening, Reloaded, ReloadRefused, Stopping


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Daemon]]]:
    """Start a daemon on a free port; it is stopped at the end."""
    started: list[Daemon] = []

    async def begin(config: Any = None, **options: Any) -> Daemon:
        if config is None:
            options.setdefault("listen", "127.0.0.1:0")
        daemon = Daemon(config, data=tmp_path / "data", **options)
        await daemon.start()
        started.append(daemon)
        return daemon

    yield begin
    for daemon in started:
        await daemon.stop()


def client_of(daemon: Daemon, index: int = 0) -> smtplib.SMTP:
    """A client that said EHLO; for use in a thread."""
    client = smtplib.SMTP("127.0.0.1", int(daemon.addresses[index].rpartition(":")[2]), timeout=20)
    client.ehlo("client.example.org")
    return client


async def send(daemon: Daemon, text: str = "x", index: int = 0) -> tuple[int, bytes]:
    """Send one mail and return the reply to its dot."""

    def talk() -> tuple[int, bytes]:
        with contextlib.closing(client_of(daemon, index)) as client:
            client.mail("a@example.org")
            client.rcpt("b@example.org")
            return client.data(f"Subject: {text}\r\n\r\n{text}\r\n".encode())

    return await asyncio.to_thread(talk)


def finish(client: smtplib.SMTP) -> tuple[int, bytes]:
    """End a mail whose DATA was begun."""
    client.send(b"x\r\n.\r\n")
    return client.getreply()


async def until(condition: Callable[[], Any], within: float = 20.0) -> None:
    """Return once *condition* holds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - of things that tell nobody
            await asyncio.sleep(0.01)


class File:
    """A configuration file that changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = 0

    def write(self, text: str, *, listen: str = "127.0.0.1:0", server: str = "") -> None:
        self.path.write_text(f'[[servers]]\nlisten = "{listen}"\n{server}\n{text}')


@pytest.fixture
def file(tmp_path: Path) -> File:
    """``mail.toml``."""
    return File(tmp_path / "mail.toml")


class TestLibrary:
    async def test_zero_configuration_takes_mail(self, start: Any) -> None:
        """Two lines in somebody's program."""
        daemon = await start()

        assert (await send(daemon))[0] == 250
        assert daemon.gateway().statistics.stored == 1

    async def test_steps_of_ones_own(self, start: Any) -> None:
        """Given in code, named in the chain."""
        seen: list[str] = []

        def words(envelope: Envelope) -> None:
            seen.append(envelope.subject)
            if envelope.subject == "spam":
                raise Rejected(Reply(550, "5.7.1", "no spam"))

        config = {"servers": [{"listen": "127.0.0.1:0"}], "gateways": {"default": {"process": "words | sql"}}}
        daemon = await start(config, steps={"words": words})

        assert (await send(daemon, "ham"))[0] == 250
        assert await send(daemon, "spam") == (550, b"5.7.1 no spam")
        assert seen == ["ham", "spam"]

    async def test_events(self, start: Any, tmp_path: Path) -> None:
        """What happens is told, in order; a raising callback takes nothing down."""
        told: list[Event] = []
        daemon = Daemon(listen="127.0.0.1:0", data=tmp_path / "d")
        end = daemon.subscribe(Event, told.append)
        daemon.subscribe(Listening, lambda event: 1 / 0)
        async with daemon:
            pass
        end()

        kinds = [type(event) for event in told]
        assert kinds == [GatewayOpened, Listening, Stopping, GatewayClosed]

    async def test_statistics_are_plain_values(self, start: Any) -> None:
        """As ``stats --json`` prints them."""
        import json

        daemon = await start()
        await send(daemon)
        counted = json.loads(json.dumps(daemon.statistics()))

        assert counted["gateways"]["default"]["stored"] == 1
        assert counted["gateways"]["default"]["channel"]["delivered"] == 1
        assert counted["servers"][daemon.addresses[0]]["accepted"] == 1

    async def test_a_taken_address_is_an_error_and_nothing_is_left(self, tmp_path: Path) -> None:
        """File, table and key; no storage was opened."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            daemon = Daemon(listen=f"127.0.0.1:{port}", data=tmp_path / "d")
            with pytest.raises(
                ConfigError, match=rf"\[\[servers\]\] 1 listen: cannot listen on 127.0.0.1:{port}"
            ):
                await daemon.start()
        assert not (tmp_path / "d").exists()

    async def test_a_storage_that_cannot_be_opened_is_an_error(self, tmp_path: Path) -> None:
        """An unreachable database at start: the gateway and the reason."""
        config = {
            "servers": [{"listen": "127.0.0.1:0"}],
            "processors": {"sql": {"url": "sqlite:////dev/null/folder/mail.db"}},
        }
        with pytest.raises(ConfigError, match=r"\[gateways.default\] process: cannot be opened"):
            await Daemon(config, data=tmp_path / "d").start()

    async def test_what_was_opened_before_it_is_closed_again(self, tmp_path: Path) -> None:
        """All gateways or none."""
        told: list[str] = []

        class Step:
            async def setup(self, place: object) -> None:
                told.append("open")

            async def teardown(self) -> None:
                told.append("close")

            async def __call__(self, batch: Batch[Envelope]) -> None: ...

        config = {
            "servers": [{"listen": "127.0.0.1:0", "gateway": "one"}],
            "gateways": {"one": {"process": "step"}, "two": {"process": "sql"}},
            "processors": {"sql": {"url": "sqlite:////dev/null/folder/mail.db"}},
        }
        with pytest.raises(ConfigError, match=r"\[gateways.two\] process: cannot be opened"):
            await Daemon(config, data=tmp_path / "d", steps={"step": Step()}).start()

        assert told == ["open", "close"]

    async def test_several_servers_and_gateways(self, start: Any) -> None:
        """Each server's mail goes to its own gateway, each with its own Channel."""
        config = {
            "servers": [
                {"listen": "127.0.0.1:0", "gateway": "one"},
                {"listen": "127.0.0.1:0", "gateway": "two"},
                {"listen": "127.0.0.1:0", "gateway": "two", "enabled": False},
            ],
            "gateways": {"one": {"process": "a:sql"}, "two": {"process": "b:sql"}},
            "processors": {"a": {"url": "sqlite:///a.db"}, "b": {"url": "sqlite:///b.db"}},
        }
        daemon = await start(config)
        await send(daemon, index=1)

        assert len(daemon.addresses) == 2
        assert daemon.gateway("one").statistics.stored == 0
        assert daemon.gateway("two").statistics.stored == 1

    async def test_a_unix_socket(self, start: Any, tmp_path: Path) -> None:
        """``unix:/path`` is listened on, and told so."""
        path = str(tmp_path / "s")
        daemon = await start(listen=f"unix:{path}")
        assert daemon.addresses == (f"unix:{path}",)

        reader, writer = await asyncio.open_unix_connection(path)
        assert (await reader.readline()).startswith(b"220 ")
        writer.close()


class TestReload:
    async def test_what_did_not_change_is_kept(self, start: Any, file: File) -> None:
        """Sockets, gateways, connections."""
        file.write("")
        daemon = await start(file.path)
        address, gateway = daemon.addresses, daemon.gateway()

        event = await daemon.reload()
        assert event.changes == ()
        assert daemon.addresses == address
        assert daemon.gateway() is gateway

    async def test_new_options_hold_for_new_connections(self, start: Any, file: File) -> None:
        """A connection keeps what it was told at its EHLO."""
        file.write("", server='max_size = "1MiB"')
        daemon = await start(file.path)
        old = await asyncio.to_thread(client_of, daemon)
        file.write("", server='max_size = "2MiB"')
        event = await daemon.reload()
        new = await asyncio.to_thread(client_of, daemon)
        await asyncio.to_thread(old.ehlo, "again.example.org")

        assert event.changes == ("server 127.0.0.1:0 changed",)
        assert old.esmtp_features["size"] == str(1 << 20)
        assert new.esmtp_features["size"] == str(2 << 20)
        old.close()
        new.close()

    async def test_a_mail_keeps_the_gateway_of_its_mail(self, start: Any, file: File) -> None:
        """In the middle of DATA it ends where it began; the next one goes the new way."""
        file.write('[gateways.default]\nprocess = "sql"\n')
        daemon = await start(file.path)
        old_gateway = daemon.gateway()
        client = await asyncio.to_thread(client_of, daemon)
        for line in ("MAIL FROM:<>", "RCPT TO:<b@example.org>"):
            await asyncio.to_thread(client.docmd, line)
        file.write('[gateways.default]\nprocess = "hasher | sql"\n')
        event = await daemon.reload()
        assert event.changes == ("gateway default changed",)
        assert daemon.gateway() is not old_gateway

        assert (await asyncio.to_thread(client.data, b"x\r\n"))[0] == 250
        assert old_gateway.statistics.stored == 1
        assert (await send(daemon))[0] == 250
        assert daemon.gateway().statistics.stored == 1
        client.close()

    async def test_the_old_gateway_closes_after_its_last_mail(self, start: Any, file: File) -> None:
        """Not earlier, and not never."""
        file.write('[gateways.default]\nprocess = "sql"\n')
        daemon = await start(file.path)
        closed: list[GatewayClosed] = []
        daemon.subscribe(GatewayClosed, closed.append)
        client = await asyncio.to_thread(client_of, daemon)
        for line in ("MAIL FROM:<>", "RCPT TO:<b@example.org>", "DATA"):
            await asyncio.to_thread(client.docmd, line)
        file.write('[gateways.default]\nprocess = "hasher | sql"\n')
        await daemon.reload()
        await send(daemon)
        assert closed == []
        assert (await asyncio.to_thread(finish, client))[0] == 250

        await until(lambda: closed)
        client.close()

    async def test_servers_come_and_go(self, start: Any, file: File, tmp_path: Path) -> None:
        """Those that stay keep their socket."""
        file.write("")
        daemon = await start(file.path)
        (first,) = daemon.addresses
        path = tmp_path / "s"
        file.write(f'[[servers]]\nlisten = "unix:{path}"\n')
        await daemon.reload()
        assert daemon.addresses == (first, f"unix:{path}")
        file.path.write_text(f'[[servers]]\nlisten = "unix:{path}"\n')
        event = await daemon.reload()

        assert event.changes == ("server 127.0.0.1:0 removed",)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(socket.create_connection, ("127.0.0.1", int(first.rpartition(":")[2])), 5)

    @pytest.mark.parametrize(
        "text",
        [
            "nonsense = ",
            "nonsense = 1",
            '[gateways.default]\nprocess = "haser | sql"',
            '[processors.sql]\nurl = "sqlite:////dev/null/folder/mail.db"',
            '[[servers]]\nlisten = "127.0.0.1:%PORT%"',
            '[[servers]]\nlisten = "127.0.0.1:0"\ntls = { certificate = "/nonexistent.pem" }',
            'user = "nobody"',
        ],
    )
    async def test_what_cannot_be_used_changes_nothing(self, text: str, start: Any, file: File) -> None:
        """Neither a socket, nor a gateway, nor the configuration that holds."""
        file.write("")
        daemon = await start(file.path)
        gateway, address, config = daemon.gateway(), daemon.addresses, daemon.config
        told: list[Event] = []
        daemon.subscribe(Event, told.append)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            text = text.replace("%PORT%", str(taken.getsockname()[1]))
            file.path.write_text(f'{text}\n[[servers]]\nlisten = "127.0.0.1:0"\n')
            with pytest.raises(ConfigError):
                await daemon.reload()

        assert (daemon.gateway(), daemon.addresses, daemon.config) == (gateway, address, config)
        assert [type(event) for event in told if not isinstance(event, GatewayOpened)] == [ReloadRefused]
        assert (await send(daemon))[0] == 250

    async def test_reloads_under_load_lose_nothing(self, start: Any, file: File) -> None:
        """Every mail is answered 250 while gateways are changed again and again."""
        file.write("")
        daemon = await start(file.path)
        told: list[Reloaded] = []
        daemon.subscribe(Reloaded, told.append)
        answers: list[int] = []

        def talk() -> None:
            with contextlib.closing(client_of(daemon)) as client:
                for _ in range(40):
                    client.mail("a@example.org")
                    client.rcpt("b@example.org")
                    answers.append(client.data(b"x\r\n")[0])

        talking = [asyncio.create_task(asyncio.to_thread(talk)) for _ in range(5)]
        number = 0
        while not all(task.done() for task in talking):
            number += 1
            file.write(f'[gateways.default]\nprocess = "sql"\nbatch_items_max = {number}\n')
            await daemon.reload()
            await asyncio.sleep(0.01)
        await asyncio.gather(*talking)

        assert answers == [250] * 200
        assert len(told) == number > 1


class TestStop:
    async def test_a_mail_under_way_is_finished(self, start: Any) -> None:
        """Its client gets its 250."""
        daemon = await start()
        client = await asyncio.to_thread(client_of, daemon)
        for line in ("MAIL FROM:<>", "RCPT TO:<b@example.org>", "DATA"):
            await asyncio.to_thread(client.docmd, line)
        stopping = asyncio.create_task(daemon.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        code, _ = await asyncio.to_thread(finish, client)

        assert code == 250
        assert await stopping is True
        client.close()

    async def test_it_does_not_wait_for_who_gave_up_before_a_reload(self, start: Any, file: File) -> None:
        """A client that said MAIL to a gateway since replaced, and left, is no mail under way."""
        file.write('[gateways.default]\nprocess = "sql"\n')
        daemon = await start(file.path)
        client = await asyncio.to_thread(client_of, daemon)
        await asyncio.to_thread(client.docmd, "MAIL FROM:<>")
        client.close()
        file.write('[gateways.default]\nprocess = "hasher | sql"\n')
        await daemon.reload()

        async with asyncio.timeout(15):
            assert await daemon.stop() is True

    async def test_a_gateway_that_does_not_survive_stops_the_daemon(
        self, start: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """So that a supervisor starts it again, instead of 451 for ever."""

        class Leave(BaseException):
            """No `Exception`."""

        async def leave(batch: Batch[Envelope]) -> None:
            raise Leave

        config = {"servers": [{"listen": "127.0.0.1:0"}], "gateways": {"default": {"process": "leave"}}}
        daemon = await start(config, steps={"leave": leave})
        assert (await send(daemon))[0] == 451
        async with asyncio.timeout(10):
            await daemon.wait_stopped()

        assert daemon.crashed
        assert "a gateway did not survive" in caplog.text

    async def test_idle_clients_are_told(self, start: Any) -> None:
        """421 4.3.2, and the stop does not wait for them."""
        daemon = await start()
        client = await asyncio.to_thread(client_of, daemon)
        assert await daemon.stop() is True

        assert await asyncio.to_thread(client.getreply) == (421, b"4.3.2 Shutting down, try again later")
        client.close()

    async def test_a_storage_that_hangs_is_left_behind(
        self, start: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Past the deadline stop returns False and says what hangs."""
        release = asyncio.Event()

        async def hang(batch: object) -> None:
            import anyio

            with anyio.CancelScope(shield=True):
                await release.wait()

        config = {
            "shutdown_timeout": 0.2,
            "servers": [{"listen": "127.0.0.1:0"}],
            "gateways": {"default": {"process": "hang"}},
        }
        daemon = await start(config, steps={"hang": hang})
        sending = asyncio.create_task(send(daemon))
        await until(lambda: daemon.gateway().statistics.channel.leased_items)

        assert await daemon.stop() is False
        assert "this does not end, its storages hang" in caplog.text
        release.set()
        with pytest.raises((smtplib.SMTPException, OSError)):
            await sending
