"""
What a step may raise to answer for one envelope.

::

    Exception
    +-- Answer              carries a Reply
        +-- Rejected        5xx: refused for good; only a step may say so
        +-- Deferred        4xx: not now, the client tries again
        +-- Discarded       250, and kept nowhere

Any other exception out of a step is trouble of ours, and never becomes a 5xx.
"""

from mailpipe.reply import OK, Reply

__all__ = ["Answer", "Deferred", "Discarded", "Rejected"]


class Answer(Exception):
    """A step's answer for one envelope; its subclasses say which kind."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply)  # its text is made when somebody asks for it
        self.reply = reply


class Rejected(Answer):
    """
    The envelope is refused for good.

    Raises:
        ValueError: If *reply* is not a 5xx.
    """

    def __init__(self, reply: Reply) -> None:
        if not reply.permanent:
            msg = f"Rejected takes a 5xx reply, got {reply}"
            raise ValueError(msg)
        super().__init__(reply)


class Deferred(Answer):
    """
    The envelope is not taken now; the client keeps it and tries again.

    Raises:
        ValueError: If *reply* is not a 4xx.
    """

    def __init__(self, reply: Reply) -> None:
        if not reply.temporary:
            msg = f"Deferred takes a 4xx reply, got {reply}"
            raise ValueError(msg)
        super().__init__(reply)


class Discarded(Answer):
    """The envelope is answered 250 and kept nowhere."""

    def __init__(self) -> None:
        super().__init__(OK)
