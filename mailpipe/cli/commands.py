"""
The command line: ``mailpipe serve | check | list | show | export | delete | dead | stats | reload``.

Exit codes: 0 done, 1 failed, 2 wrong use (a configuration that cannot be used is wrong use).
Reading commands open the storages of the configuration themselves, so they work beside a running
daemon and without one.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mailpipe.cli.dead import DeadLetters
from mailpipe.cli.reading import CannotRead, Reading
from mailpipe.cli.report import explain
from mailpipe.cli.show import plain, rendered, row
from mailpipe.config import Config, ConfigError, load_config, parse_duration, read_data
from mailpipe.daemon.control import ask
from mailpipe.daemon.logs import masked
from mailpipe.gateway.deadletters import Deed

__all__ = ["app", "main"]

app = typer.Typer(
    name="mailpipe",
    help="A programmable mail gateway: receives mail over SMTP and stores it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[
    Path | None, typer.Option("-c", "--config", metavar="FILE", help="Configuration (TOML); none is needed.")
]
DataFolder = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Data folder [default: ./mail-data or $MAILPIPE_DATA]."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
QueueId = Annotated[str, typer.Argument(metavar="QUEUE_ID")]


def main() -> None:
    """Run the command line; ends the process."""
    # A reader that has seen enough (`mailpipe list | head`) is no failure of ours.
    try:
        app()
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(text: str) -> NoReturn:
    typer.echo(plain(text, keep="\n"), err=True)
    raise typer.Exit(1)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Errors a user can do something about become a line and an exit code; others a traceback."""
    try:
        yield
    except ConfigError as error:
        lines = "\n".join(plain(masked(str(problem))) for problem in error.problems)
        typer.echo(lines, err=True)
        raise typer.Exit(2) from error
    except CannotRead as error:
        _fail(masked(str(error).splitlines()[0]))


def _load(config: Path | None, data: str | None, listen: str | None = None) -> Config:
    return load_config(config, data=data, listen=listen)


@app.command()
def serve(
    config: ConfigFile = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the first server listens.")
    ] = None,
    data: DataFolder = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes [default: as configured, or 1].")
    ] = None,
) -> None:
    """
    Receive mail until SIGTERM or SIGINT.

    Logs go to stderr; stdout gets a line "listening on HOST:PORT" per server once it accepts.
    """
    from mailpipe.daemon.process import run

    with _errors():
        load: Callable[[], Config] = lambda: _load(config, data, listen)  # noqa: E731 - said again at each reload
        raise typer.Exit(run(load, workers=workers, command=_again(config, data, listen)))


def _again(config: Path | None, data: str | None, listen: str | None) -> list[str]:
    """The command line of a worker: ours, without its number of workers."""
    command = [sys.executable, "-P", "-m", "mailpipe", "serve"]
    for option, value in (("--config", config), ("--data", data), ("--listen", listen)):
        command += [] if value is None else [option, str(value)]
    return command


@app.command()
def check(config: ConfigFile = None, data: DataFolder = None, as_json: AsJson = False) -> None:
    """Explain the configuration: chains, who reads and writes what, how durable each storage is."""
    with _errors():
        explained = explain(_load(config, data))
    typer.echo(json.dumps(explained.facts) if as_json else plain(explained.text, keep="\n"))


@app.command("list")
def list_(config: ConfigFile = None, data: DataFolder = None, as_json: AsJson = False) -> None:
    """List stored mails, oldest first."""
    with _errors(), Reading(_load(config, data)) as reading:
        for mail in reading.mails():
            facts = row(mail)
            if as_json:
                typer.echo(json.dumps(facts))
                continue
            typer.echo(
                f"{facts['queue_id']}  {facts['received_at'][:19]}Z  {facts['size']:>10}  "
                f"{plain(facts['mail_from'] or '<>')} -> {plain(', '.join(facts['rcpt_to']))}  "
                f"{plain(facts['subject'])}"
            )


@app.command()
def show(queue_id: QueueId, config: ConfigFile = None, data: DataFolder = None) -> None:
    """Show one mail for people: envelope, headers and text, decoded."""
    with _errors(), Reading(_load(config, data)) as reading:
        mail = reading.get(queue_id)
        if mail is None:
            _fail(f"no such mail: {queue_id}")
        typer.echo(rendered(mail))


@app.command()
def export(queue_id: QueueId, config: ConfigFile = None, data: DataFolder = None) -> None:
    """Write one mail to stdout, byte for byte as received."""
    with _errors(), Reading(_load(config, data)) as reading:
        mail = reading.get(queue_id)
        if mail is None or mail.body is None:
            _fail(f"no such mail: {queue_id}")
        for chunk in mail.body.chunks():
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


@app.command()
def delete(
    queue_ids: Annotated[list[str] | None, typer.Argument(metavar="QUEUE_ID...")] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="30d", help="Delete what was received longer ago.")
    ] = None,
    config: ConfigFile = None,
    data: DataFolder = None,
) -> None:
    """Delete mails by their ids, or by their age."""
    if bool(queue_ids) == (older_than is not None):
        msg = "give queue ids or --older-than, one of the two"
        raise typer.BadParameter(msg)
    try:
        age = None if older_than is None else parse_duration(older_than)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with _errors(), Reading(_load(config, data)) as reading:
        if age is not None:
            typer.echo(f"deleted {reading.expire(age)}")
            return
        missing = [queue_id for queue_id in queue_ids or () if not reading.delete(queue_id)]
    typer.echo(f"deleted {len(queue_ids or ()) - len(missing)}")
    if missing:
        _fail("\n".join(f"no such mail: {queue_id}" for queue_id in missing))


dead = typer.Typer(help="Mails that could not be delivered after their 250, and background jobs given up.")
app.add_typer(dead, name="dead", no_args_is_help=True)

DeadIds = Annotated[list[str], typer.Argument(metavar="ID...")]


@dead.command("list")
def dead_list(config: ConfigFile = None, data: DataFolder = None, as_json: AsJson = False) -> None:
    """List dead letters: what, of which gateway, and why."""
    with _errors():
        letters = DeadLetters(_load(config, data))
        for letter in letters.all():
            facts = letter.row()
            if as_json:
                typer.echo(json.dumps(facts))
                continue
            to = (
                f"  {plain(facts['mail_from'] or '<>')} -> {plain(', '.join(facts['rcpt_to']))}"
                if "rcpt_to" in facts
                else ""
            )
            typer.echo(f"{facts['id']}  {facts['gateway']}  {facts['kind']}{to}  {plain(facts['error'])}")
    if letters.unread:
        _fail(masked("\n".join(letters.unread)))


@dead.command("retry")
def dead_retry(ids: DeadIds, config: ConfigFile = None, data: DataFolder = None) -> None:
    """Try dead letters again, their attempts forgotten."""
    _act("retry", ids, config, data)


@dead.command("drop")
def dead_drop(ids: DeadIds, config: ConfigFile = None, data: DataFolder = None) -> None:
    """Delete dead letters for good."""
    _act("drop", ids, config, data)


def _act(deed: Deed, ids: list[str], config: Path | None, data: str | None) -> None:
    with _errors():
        letters = DeadLetters(_load(config, data))
        done, unknown = letters.act(deed, ids)
    typer.echo(f"{'dropped' if deed == 'drop' else 'to be tried again:'} {done}")
    if unknown:
        _fail(masked("\n".join([*letters.unread, *(f"no such dead letter: {name}" for name in unknown)])))


def _ask(config: Path | None, data: str | None, command: str) -> dict[str, Any]:
    with _errors():
        # Which data folder is all that is asked of it: a daemon with a good configuration must be
        # reachable while its file is broken.
        folder = read_data(config, data)
    try:
        return ask(folder, {"command": command})
    except (OSError, ValueError) as error:
        _fail(f"no daemon answers at {folder / 'control.sock'}: {error}")


@app.command()
def stats(config: ConfigFile = None, data: DataFolder = None, as_json: AsJson = False) -> None:
    """Show what the running daemon has done, and what it is doing."""
    answer = _ask(config, data, "stats")
    if not answer.pop("ok", False):
        _fail(str(answer.get("error")))
    typer.echo(json.dumps(answer) if as_json else plain(json.dumps(answer, indent=2), keep="\n"))


@app.command()
def reload(config: ConfigFile = None, data: DataFolder = None, as_json: AsJson = False) -> None:
    """Let the running daemon read its configuration again; tells what came of it."""
    answer = _ask(config, data, "reload")
    if as_json:
        typer.echo(json.dumps(answer))
    elif answer.get("ok"):
        typer.echo(plain("\n".join(answer["changes"]) or "nothing changed", keep="\n"))
    else:
        typer.echo(plain(str(answer.get("error")), keep="\n"), err=True)
    if not answer.get("ok"):
        raise typer.Exit(1)
