"""Turns of processes: one at a time, a bounded wait, and no turn of the dead."""

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mailpipe.storages._turn import Turn

HOLD = """
import sys
from pathlib import Path
from mailpipe.storages._turn import Turn
with Turn(Path(sys.argv[1]), 10):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mail.db.lock"


def _held(path: Path) -> bool:
    """Somebody has the lock of that file, within half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        time.sleep(0.001)
    return False


class TestTurn:
    def test_one_at_a_time(self, path: Path) -> None:
        """Whoever comes while it is another's turn waits for it to end."""
        inside, most = 0, 0

        def work() -> None:
            nonlocal inside, most
            for _ in range(50):
                with Turn(path, 30):
                    inside += 1
                    most = max(most, inside)
                    inside -= 1

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1

    def test_who_waits_is_the_next(self, path: Path) -> None:
        """A process that comes again at once does not overtake one that has waited all along."""
        order: list[str] = []
        waits, first = threading.Event(), Turn(path, 30)

        def wait() -> None:
            waits.set()
            with Turn(path, 30):
                order.append("waited")

        with first:
            waiting = threading.Thread(target=wait)
            waiting.start()
            assert waits.wait(30)
            assert _held(path.with_name(f"{path.name}-next"))
        for _ in range(100):
            with first:
                order.append("came again")
        waiting.join()

        assert order[0] == "waited"

    def test_waits_no_longer_than_told(self, path: Path) -> None:
        """TimeoutError, which is store trouble; the other's turn goes on."""
        first = Turn(path, 1)
        with (
            first,
            pytest.raises(TimeoutError, match=r"no turn at mail.db.lock within 0.05 s"),
            Turn(path, 0.05),
        ):
            pytest.fail("it is the other's turn")
        with Turn(path, 0.05):
            pass

    def test_a_turn_that_nobody_waits_for_any_more_is_given_back(self, path: Path) -> None:
        """It comes after all to who gave up, and holds up nobody; not even the same process."""
        first, patient = Turn(path, 1), Turn(path, 0.05)
        with first:
            for _ in range(3):
                with pytest.raises(TimeoutError), patient:
                    pytest.fail("it is the other's turn")
        with Turn(path, 30), pytest.raises(TimeoutError), patient:
            pytest.fail("it is the other's turn")
        deadline = time.monotonic() + 30
        while True:
            try:
                with patient:
                    break
            except TimeoutError:
                assert time.monotonic() < deadline
        with Turn(path, 30):
            pass
        patient.close()
        patient.close()

    def test_the_turn_of_a_dead_process_is_over(self, path: Path) -> None:
        """Killed in its turn, a process holds nobody up."""
        command = [sys.executable, "-c", HOLD, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"mine\n"
            with pytest.raises(TimeoutError), Turn(path, 0.05):
                pytest.fail("it is the other's turn")
            other.kill()
            other.wait(30)
            with Turn(path, 10):
                pass
