"""
What no single key shows: chains that cannot be, and trust that is given away by accident.
"""

import os
from pathlib import Path

from mailpipe.chain import ChainError, Plan
from mailpipe.config.schema import Config, GatewayConfig, ServerConfig
from mailpipe.config.values import Reader
from mailpipe.receivers.tls import make_context

__all__ = ["check_together"]

# Steps that send mail on or run programs for it: never for everybody.
_OUTWARD = frozenset({"relay", "exec"})
_LEVELS = ("none", "os", "disk")


def check_together(config: Config, reader: Reader) -> frozenset[str]:
    """
    Note in *reader* what is wrong between tables.

    Returns:
        The gateways whose chains send mail on: their servers let strangers send to named hosts only.
    """
    plans = {name: _plans(config, reader, name, gateway) for name, gateway in config.gateways.items()}
    largest = min((gateway.batch_size_max for gateway in config.gateways.values()), default=None)
    if largest is not None and config.daemon.spool_above > largest:
        what = f"must be at most batch_size_max = {largest} of every gateway, got {config.daemon.spool_above}"
        reader.problem("", "spool_above", what)
    _check_spools(config, reader)
    seen: dict[str, int] = {}
    for index, server in enumerate(config.servers, 1):
        place = f"[[servers]] {index}"
        listen = server.options.listen
        if not listen.endswith(":0") and seen.setdefault(listen, index) != index:
            reader.problem(place, "listen", f"[[servers]] {seen[listen]} listens on {listen!r} already")
        if server.gateway not in config.gateways:
            known = ", ".join(sorted(config.gateways))
            reader.problem(place, "gateway", f"no such gateway; there are {known}, got {server.gateway!r}")
        elif (found := plans[server.gateway]) is not None:
            _check_server(reader, place, server, *found)
    return frozenset([name for name, found in plans.items() if found is not None and _outward(*found)])


def _check_spools(config: Config, reader: Reader) -> None:
    users: dict[Path, str] = {}
    for name, gateway in config.gateways.items():
        if (spool := gateway.spooling) is None:
            continue
        folder = Path(os.path.normpath(config.spool_folder(name)))
        if (other := users.setdefault(folder, name)) != name:
            what = f"is the folder of [gateways.{other}] already, got {str(folder)!r}"
            reader.problem(f"[gateways.{name}]", "spool.path", what)
        largest = max((s.options.max_size for s in config.servers if s.gateway == name), default=0)
        if spool.max_size < largest:
            what = f"must be at least {largest}, the largest mail of its servers, got {spool.max_size}"
            reader.problem(f"[gateways.{name}]", "spool.max_size", what)


def _outward(plan: Plan, background: Plan | None) -> list[str]:
    """The names of the steps that send mail on."""
    steps = plan.steps + (background.steps if background is not None else ())
    return [step.name for step in steps if step.spec.name in _OUTWARD]


def _plans(
    config: Config, reader: Reader, name: str, gateway: GatewayConfig
) -> tuple[Plan, Plan | None] | None:
    table = f"[gateways.{name}]"
    plans: dict[str, Plan] = {}
    for key in ("process", "validate", "background"):
        if text := getattr(gateway, key):
            try:
                plans[key] = config.plan(text, key)
            except ChainError as error:
                reader.problem(table, key, str(error))
    if (plan := plans.get("process")) is None:
        return None
    if plan.storages and _LEVELS.index(plan.durability) < _LEVELS.index(gateway.durability):
        weakest = min(plan.storages, key=lambda step: _LEVELS.index(step.target.durability))  # type: ignore[attr-defined] # a storage's
        reader.problem(
            table,
            "durability",
            f"the chain {gateway.process!r} keeps a body at {plan.durability!r} only (by {weakest.name!r}); "
            f"say durability = {plan.durability!r} to mean it, got {gateway.durability!r}",
        )
    if gateway.background and plan.archive is None:
        what = f"reads mails back, and no storage of {gateway.process!r} can; got {gateway.background!r}"
        reader.problem(table, "background", what)
    return plan, plans.get("background")


def _check_server(
    reader: Reader, place: str, server: ServerConfig, plan: Plan, background: Plan | None
) -> None:
    options = server.options
    if options.tls is not None:
        try:
            make_context(options.tls)
        except ValueError as error:
            reader.problem(place, "tls", str(error))
    if plan.largest is not None and options.max_size > plan.largest:
        what = f"must be at most {plan.largest}, the largest body of the chain {plan.text!r}, got {options.max_size}"
        reader.problem(place, "max_size", what)
    anyone = not options.relay_from and not options.users and options.authenticator is None
    outward = _outward(plan, background)
    everybody = options.allowed_hosts is None or "*" in options.allowed_hosts or "." in options.allowed_hosts
    if outward and everybody and anyone:
        reader.problem(
            place,
            "allowed_hosts",
            f"any recipient with {outward[0]!r} in the chain is an open relay; "
            f"name hosts, or say relay_from = [networks], or users, got {options.allowed_hosts!r}",
        )
