"""``exec``: a program for each mail, its exit status the answer, its arguments safe."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mailpipe.envelope import Envelope
from mailpipe.errors import Deferred, Rejected
from mailpipe.steps import Place
from mailpipe.storages.exec import ExecOptions, ExecStorage, answer_of

MakeEnvelope = Callable[..., Envelope]
Keep = Callable[..., Awaitable[Any]]


def python(script: str, *arguments: str) -> tuple[str, ...]:
    """A program of a few lines."""
    return (sys.executable, "-c", script, *arguments)


SAVE = (
    "import sys, os\n"
    "data = sys.stdin.buffer.read()\n"
    "with open(os.path.join(sys.argv[1], sys.argv[2]), 'ab') as file: file.write(data)\n"
)
TELL = (
    "import sys, os, json\n"
    "with open(os.path.join(sys.argv[1], 'calls'), 'a') as file: file.write(json.dumps(sys.argv[2:]) + '\\n')\n"
)


class TestRunning:
    async def test_the_mail_is_its_input(
        self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Prelude and every octet of the body, large ones too."""
        storage = ExecStorage(ExecOptions(command=python(SAVE, str(tmp_path), "{queue_id}")))
        envelopes = [make_envelope(bytes(range(256)) * number) for number in (0, 1, 4000)]
        view = await keep(storage, *envelopes)

        assert (view.failed, view.finished) == ({}, {0, 1, 2})
        for envelope in envelopes:
            assert (tmp_path / envelope.queue_id).read_bytes() == envelope.prelude + envelope.body.read()

    async def test_arguments_are_filled_in(
        self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Never split, never seen by a shell, and {recipients} is one for each."""
        command = python(TELL, str(tmp_path), "-f{sender}", "{recipients}")
        storage = ExecStorage(ExecOptions(command=command))
        hostile = make_envelope(to=['"; rm -rf $HOME `id`"@Example.org', "{sender}@example.org"])
        await keep(storage, hostile)

        (line,) = (tmp_path / "calls").read_text().splitlines()
        expected = ["-fa@example.org", '"; rm -rf $HOME `id`"@example.org', "{sender}@example.org"]
        assert line == json.dumps(expected)

    async def test_once_for_each_recipient(
        self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Each has a result of its own, in their order."""
        script = TELL + "sys.exit({'no': 67, 'later': 75}.get(sys.argv[2], 0))\n"
        storage = ExecStorage(ExecOptions(command=python(script, str(tmp_path), "{user}", "{domain}")))
        view = await keep(storage, make_envelope(to=["yes@a.example", "no@a.example", "later@b.example"]))

        assert storage.per_recipient
        assert view.finished == {0}
        assert [reply.code for reply in view.result[0]] == [250, 550, 451]

    async def test_refused_for_everybody(self, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """The milder answer stands: the client may try again for whoever may yet be taken."""
        script = "import sys\nsys.exit({'no': 67, 'later': 75}[sys.argv[1]])\n"
        storage = ExecStorage(ExecOptions(command=python(script, "{user}")))
        view = await keep(storage, make_envelope(to=["no@a.example", "later@a.example"]))

        assert view.failed[0].reply.code == 451
        assert view.finished == set()

    @pytest.mark.parametrize("address", ["-x@example.org", "a/b@example.org", ".x@example.org"])
    async def test_a_recipient_that_is_no_argument(
        self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path, address: str
    ) -> None:
        """550 5.1.3, and the program never runs."""
        storage = ExecStorage(ExecOptions(command=python(TELL, str(tmp_path), "{recipients}")))
        view = await keep(storage, make_envelope(to=[address]))

        assert isinstance(view.failed[0], Rejected)
        assert view.failed[0].reply.enhanced == "5.1.3"
        assert not (tmp_path / "calls").exists()

    async def test_no_more_than_so_many_at_once(
        self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """The bound holds over the whole batch."""
        script = (
            "import os, sys, time\n"
            "folder = sys.argv[1]\n"
            "mine = os.path.join(folder, 'run-' + sys.argv[2])\n"
            "open(mine, 'w').close()\n"
            "time.sleep(0.05)\n"
            "print(len([n for n in os.listdir(folder) if n.startswith('run-')]),"
            " file=open(os.path.join(folder, 'counts'), 'a'))\n"
            "os.unlink(mine)\n"
        )
        options = ExecOptions(command=python(script, str(tmp_path), "{queue_id}"), processes=2)
        view = await keep(ExecStorage(options), *[make_envelope() for _ in range(6)])

        counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
        assert len(view.finished) == len(counts) == 6
        assert max(counts) <= 2


class TestAnswers:
    @pytest.mark.parametrize("status", [1, 2, 64, 66, 70, 71, 72, 73, 74, 75, 76, 78, 126, 127, 255, -9, -15])
    def test_our_trouble_is_temporary(self, status: int) -> None:
        """Whatever is not said of the mail or its recipient is never a 5xx."""
        answer = answer_of(status)

        assert isinstance(answer, Deferred)
        assert answer.reply.code == 451

    @pytest.mark.parametrize(
        ("status", "enhanced"), [(65, "5.6.0"), (67, "5.1.1"), (68, "5.1.2"), (69, "5.3.0"), (77, "5.7.0")]
    )
    def test_theirs_is_permanent(self, status: int, enhanced: str) -> None:
        """sysexits.h by name: bad data, no user, no host, unavailable, no permission."""
        answer = answer_of(status)

        assert isinstance(answer, Rejected)
        assert (answer.reply.code, answer.reply.enhanced) == (550, enhanced)

    def test_zero_takes_the_mail(self) -> None:
        """And nothing else does."""
        assert answer_of(0) is None


class TestTrouble:
    async def test_a_program_that_takes_too_long(
        self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path
    ) -> None:
        """Killed with its children: 451, and nothing of it runs on."""
        script = (
            "import os, subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid}')\n"
            "time.sleep(600)\n"
        )
        pids = tmp_path / "pids"
        storage = ExecStorage(ExecOptions(command=python(script, str(pids)), timeout=3))
        view = await keep(storage, make_envelope())

        assert isinstance(view.failed[0], Deferred)
        assert [alive(int(pid)) for pid in pids.read_text().split()] == [False, False]

    async def test_a_cancelled_attempt(self, make_envelope: MakeEnvelope, keep: Keep, tmp_path: Path) -> None:
        """The program is gone when the attempt is."""
        pids = tmp_path / "pids"
        script = "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
        storage = ExecStorage(ExecOptions(command=python(script, str(pids))))
        task = asyncio.ensure_future(keep(storage, make_envelope()))
        deadline = time.monotonic() + 30
        while not (pids.exists() and pids.read_text()) and time.monotonic() < deadline:  # noqa: ASYNC110 - a process
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert not alive(int(pids.read_text()))

    async def test_a_program_that_reads_nothing(self, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """Its status decides, not the broken pipe."""
        storage = ExecStorage(ExecOptions(command=python("pass")))
        view = await keep(storage, make_envelope(b"x" * 5_000_000))

        assert (view.failed, view.finished) == ({}, {0})

    async def test_a_talkative_program(self, make_envelope: MakeEnvelope, keep: Keep, caplog: Any) -> None:
        """Megabytes of complaints neither block it nor fill the log, and reach no client."""
        script = "import sys\nsys.stderr.write('secret ' * 1_000_000)\nsys.exit(1)\n"
        storage = ExecStorage(ExecOptions(command=python(script)))
        view = await keep(storage, make_envelope())

        assert "secret" not in view.failed[0].reply.text
        assert 0 < len(caplog.text) < 3000

    async def test_a_program_that_is_not_there(self, tmp_path: Path) -> None:
        """Said at setup, with the name."""
        storage = ExecStorage(ExecOptions(command=("/no/such/program",)))
        with pytest.raises(ValueError, match="names a program that can be run, got '/no/such/program'"):
            await storage.setup(Place(data=tmp_path))

    async def test_a_program_that_was_removed(self, make_envelope: MakeEnvelope, keep: Keep) -> None:
        """After setup it is our trouble, for this mail as for all."""
        storage = ExecStorage(ExecOptions(command=("/no/such/program",)))
        view = await keep(storage, make_envelope())

        assert isinstance(view.failed[0], Deferred)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "rule"),
        [
            (
                {"command": "rm -rf /"},
                "command is a list of arguments, not one text for a shell, got 'rm -rf /'",
            ),
            ({"command": []}, r"command is a list of arguments, the program first, got \(\)"),
            ({"command": ["{user}"]}, "names its program without placeholders"),
            ({"command": ["x", "{what}"]}, "command knows {sender}.*got '{what}'"),
            ({"command": ["x"], "timeout": 0}, "timeout must be more than 0, got 0"),
            ({"command": ["x"], "processes": 0}, "processes must be more than 0, got 0"),
            ({"command": ["x"], "durability": "rock"}, "durability must be one of .*got 'rock'"),
        ],
    )
    def test_bad_ones_name_the_rule(self, options: dict[str, Any], rule: str) -> None:
        """Refused before anything runs."""
        with pytest.raises(ValueError, match=rule):
            ExecOptions(**options)


def alive(pid: int) -> bool:
    """Whether a process runs, within a moment: init may yet have to bury it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return False
        except (FileNotFoundError, ProcessLookupError):
            return False
        if not os.path.exists(f"/proc/{pid}"):
            return False
        time.sleep(0.01)
    return True
