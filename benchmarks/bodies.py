"""
Mails that look like mail. Pure: the same seed gives the same octets.

A run of one letter would compress to nothing, be de-duplicated away, and show no line structure;
so there are headers, words, quoted-printable, and for larger mails a base64 part.
"""

import base64
import random

__all__ = ["mails"]

_STEMS = [
    "account",
    "address",
    "agenda",
    "answer",
    "archive",
    "arrive",
    "available",
    "balance",
    "before",
    "between",
    "board",
    "budget",
    "call",
    "cancel",
    "change",
    "charge",
    "colleague",
    "comment",
    "confirm",
    "contract",
    "copy",
    "customer",
    "deadline",
    "deliver",
    "department",
    "detail",
    "draft",
    "east",
    "error",
    "estimate",
    "evening",
    "figure",
    "final",
    "folder",
    "forward",
    "garden",
    "harbour",
    "invoice",
    "item",
    "kitchen",
    "language",
    "late",
    "ledger",
    "letter",
    "list",
    "manager",
    "market",
    "meeting",
    "message",
    "minute",
    "module",
    "monday",
    "morning",
    "network",
    "note",
    "notice",
    "number",
    "office",
    "order",
    "outside",
    "paper",
    "parcel",
    "payment",
    "people",
    "phone",
    "picture",
    "plan",
    "please",
    "price",
    "printer",
    "project",
    "question",
    "quiet",
    "receipt",
    "record",
    "regards",
    "release",
    "reply",
    "report",
    "request",
    "review",
    "river",
    "schedule",
    "second",
    "send",
    "server",
    "shipment",
    "signature",
    "station",
    "street",
    "subject",
    "summary",
    "supply",
    "table",
    "team",
    "ticket",
    "today",
    "tomorrow",
    "total",
    "travel",
    "tuesday",
    "update",
    "version",
    "visit",
    "warehouse",
    "water",
    "weather",
    "week",
    "window",
    "winter",
    "written",
    "yesterday",
]


def _text(chance: random.Random, octets: int) -> str:
    lines: list[str] = []
    length = 0
    while length < octets:
        words = chance.choices(_STEMS, k=chance.randint(6, 11))
        line = " ".join(words)[:76].capitalize()
        if chance.random() < 0.1:
            line = line[:60] + " caf=C3=A9."
        if chance.random() < 0.12:
            line = "> " + line[:70]
        lines.append(line)
        length += len(line) + 2
    return "\r\n".join(lines) + "\r\n"


def _mail(chance: random.Random, octets: int) -> bytes:
    mark = f"{chance.getrandbits(64):016x}"
    head = [
        f"Received: from out{chance.randint(1, 9)}.example.net (out.example.net [192.0.2.{chance.randint(1, 254)}])",
        f"\tby mx.example.org with ESMTPS id {mark}; Thu, 19 Nov 2026 09:{chance.randint(10, 59)}:07 +0000",
        f"Message-ID: <{mark}@example.net>",
        "Date: Thu, 19 Nov 2026 09:12:44 +0000",
        f"From: {chance.choice(_STEMS).title()} Sender <sender@example.net>",
        "To: Somebody <user@example.org>",
        f"Subject: {_text(chance, 24).splitlines()[0][:60]}",
        "MIME-Version: 1.0",
    ]
    text_head = (
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    )
    if octets < 8192:
        top = "\r\n".join(head) + "\r\n" + text_head
        return (top + _text(chance, max(100, octets - len(top)))).encode("ascii")
    border = f"=_{mark}"
    text = _text(chance, 2000)
    raw = chance.randbytes(max(0, (octets - 3200) * 57 // 78))
    attached = base64.encodebytes(raw).decode("ascii").replace("\n", "\r\n")
    parts = (
        "\r\n".join([*head, f'Content-Type: multipart/mixed; boundary="{border}"', "", ""]),
        f"--{border}\r\n{text_head}{text}",
        f'--{border}\r\nContent-Type: application/pdf; name="report-{mark}.pdf"\r\n'
        f"Content-Transfer-Encoding: base64\r\n\r\n{attached}",
        f"--{border}--\r\n",
    )
    return "".join(parts).encode("ascii")


def mails(octets: int, count: int, *, seed: int = 1) -> list[bytes]:
    """
    Make *count* different mails of about *octets* each, lines ending in CRLF, no line beginning with a dot.

    Args:
        octets: The size aimed at; the result lies within a line or two of it from 1 000 on.

        count: How many.

        seed: The same one gives the same mails.
    """
    chance = random.Random(seed)
    return [_mail(chance, octets) for _ in range(count)]
