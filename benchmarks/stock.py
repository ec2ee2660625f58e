"""
aiosmtpd as it comes, with a handler that answers 250 (``python -m benchmarks.stock``).
"""

import asyncio
import sys

from aiosmtpd.smtp import SMTP, Envelope, Session


class Accept:
    """Takes every mail and keeps none."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Answer at once."""
        return "250 OK"


async def _serve() -> None:
    handler = Accept()
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(handler, hostname="stock.example.org"), "127.0.0.1", 0
    )
    host, port = server.sockets[0].getsockname()[:2]
    print(f"listening on {host}:{port}", flush=True)  # noqa: T201 -- whoever started this reads it
    async with server:
        await server.serve_forever()


def _main() -> None:
    factory = None
    if "--uvloop" in sys.argv[1:]:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    _main()
