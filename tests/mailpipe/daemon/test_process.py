"""The process around a daemon, where no real process is needed."""

import signal

from mailpipe.daemon.process import SAME_WISH, _Stop


class TestStop:
    def test_one_wish_that_comes_twice_is_one(self) -> None:
        """`make` and a shell both pass the signal on: the mails under way are still finished."""
        done: list[str] = []
        now = 10.0
        stop = _Stop(lambda: done.append("asked"), lambda: done.append("hurried"), lambda: now)

        stop(signal.SIGTERM)
        now += SAME_WISH / 2
        stop(signal.SIGTERM)
        assert done == ["asked"]

        now = 10.0 + SAME_WISH
        stop(signal.SIGINT)
        assert done == ["asked", "hurried"]
