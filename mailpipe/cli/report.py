"""
What ``mailpipe check`` tells: servers, chains step by step, durability, and what to look out for.
"""

from typing import Any

import attrs

from mailpipe.config import Config, GatewayConfig
from mailpipe.gateway import send_timeout
from mailpipe.receivers.options import ServerOptions

__all__ = ["Report", "explain"]


@attrs.frozen
class Report:
    """One configuration, explained."""

    facts: dict[str, Any]
    """As plain values (JSON)."""

    text: str
    """For people."""


def explain(config: Config) -> Report:
    """Compile every chain of *config* and say what comes of it; opens nothing."""
    servers = [_server(server.options, server.gateway) for server in config.servers]
    gateways = {}
    for name, gateway in config.gateways.items():
        chains = {"process": config.plan(gateway.process).explain()}
        if gateway.validate:
            chains["validate"] = config.plan(gateway.validate, "validate").explain()
        if gateway.background:
            chains["background"] = config.plan(gateway.background, "background").explain()
        chains["process"]["warnings"] += _slow_drivers(config, gateway)
        durability = chains["process"]["durability"]
        if gateway.spooling is not None:
            durability = "disk"
            chains["process"]["warnings"] += _too_late(config, gateway)
        gateways[name] = {
            "durability": durability,
            "spool": gateway.spooling is not None,
            "chains": chains,
        }
    facts = {"file": config.file, "data": str(config.data), "servers": servers, "gateways": gateways}
    return Report(facts, "\n".join(_lines(facts)))


def _too_late(config: Config, gateway: GatewayConfig) -> list[str]:
    """Steps that run after the spool's 250 and may say no: what they reject is a dead letter."""
    return [
        f"{step.name}: runs after the 250 of the spool; what it rejects becomes a dead letter"
        for step in config.plan(gateway.process).batch
        if step.spec.rejects
    ]


def _slow_drivers(config: Config, gateway: GatewayConfig) -> list[str]:
    """Storages that may hang for longer than an attempt lasts: their mails may be stored after a 451."""
    limit = send_timeout(gateway)
    return [
        f"{step.name}: timeout = {timeout:g} s is not below the gateway's send_timeout = {limit:g} s"
        for step in config.plan(gateway.process).storages
        if isinstance(timeout := getattr(step.options, "timeout", None), float) and timeout >= limit
    ]


def _server(options: ServerOptions, gateway: str) -> dict[str, Any]:
    hosts = options.allowed_hosts
    return {
        "listen": options.listen,
        "protocol": options.protocol,
        "hostname": options.hostname,
        "gateway": gateway,
        "max_size": options.max_size,
        "recipients": "any" if hosts is None else ", ".join(hosts),
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"configuration: {facts['file']}", f"data folder:   {facts['data']}", ""]
    lines += [
        f"server {server['listen']} ({server['protocol']}, {server['hostname']}) -> gateway {server['gateway']}; "
        f"mails up to {server['max_size']} octets; recipients: {server['recipients']}"
        for server in facts["servers"]
    ]
    for name, gateway in facts["gateways"].items():
        by = " (the journal's: it spools)" if gateway["spool"] else ""
        lines += ["", f"gateway {name}: a 250 means durability {gateway['durability']!r}{by}"]
        for purpose, chain in gateway["chains"].items():
            lines.append(f"  {purpose} = {chain['text']!r}")
            lines += [f"    {_step(step)}" for step in chain["steps"]]
            lines += [f"    warning: {warning}" for warning in chain["warnings"]]
    return lines


def _step(step: dict[str, Any]) -> str:
    name = step["name"] if step["name"] == step["type"] else f"{step['name']} ({step['type']})"
    words = [f"{name:<24} {step['stage']:<9}"]
    if step["reads"]:
        words.append(f"reads {', '.join(step['reads'])}")
    if step["writes"]:
        words.append(f"writes {', '.join(step['writes'])}")
    if storage := step.get("storage"):
        words.append(f"stores, durability {storage['durability']!r}")
        if storage["largest"] is not None:
            words.append(f"largest body {storage['largest']}")
        words.append("idempotent" if storage["idempotent"] else "not idempotent")
    return "; ".join(words)
