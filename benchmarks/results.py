"""
What a run leaves in a file, and how it is read back. Pure: text in, text out.

Only names, units, bars and samples are believed; every derived figure is worked out again.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, cast

import attrs

from benchmarks.measure import Bar, Result, summarise_samples

__all__ = ["NotOurs", "Run", "as_json", "read"]

FORMAT = "dispatcher benchmarks 1"


class NotOurs(ValueError):
    """
    A file is not one that ``run --json`` wrote.

    Attributes:
        where: Which part of it.
        wanted: The rule.
        got: What stands there, shortened.
    """

    def __init__(self, *, where: str, wanted: str, got: object) -> None:
        text = got if isinstance(got, Exception) else json.dumps(got)
        shown = str(text) if len(str(text)) <= 80 else f"{str(text)[:77]}..."
        super().__init__(f"{where}: {wanted} is wanted, got {shown}")
        self.where, self.wanted, self.got = where, wanted, shown


@attrs.frozen(kw_only=True)
class Run:
    """One run: where, how, and what came out."""

    machine: Mapping[str, str]
    scale: float = 1.0
    """Share of the work per turn; 1.0 as published."""

    results: tuple[Result, ...]
    absent: Mapping[str, str]
    """Rows without figures, each with the reason."""


def as_json(run: Run) -> str:
    """Write a run with every sample, so that whoever doubts a median can look."""
    return json.dumps(
        {
            "format": FORMAT,
            "machine": dict(run.machine),
            "scale": run.scale,
            "rows": [attrs.asdict(result) for result in run.results],
            "without_figures": dict(run.absent),
        },
        indent=2,
    )


def _texts(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise NotOurs(where=where, wanted="an object of texts", got=value)
    return cast("dict[str, str]", value)


def _numbers(value: object, where: str) -> list[float]:
    # bool is an int to Python, and no figure; nor is the NaN that Python's JSON knows.
    if not isinstance(value, list) or not all(
        type(one) in (int, float) and math.isfinite(one) for one in value
    ):
        raise NotOurs(where=where, wanted="a list of numbers", got=value)
    return cast("list[float]", value)


def _result(row: object, where: str) -> Result:
    if not isinstance(row, dict):
        raise NotOurs(where=where, wanted="an object", got=row)
    fields: dict[str, str] = {}
    for key in ("name", "unit", "bar"):
        if not isinstance(row.get(key), str):
            raise NotOurs(where=f"{where}.{key}", wanted="a text", got=row.get(key))
        fields[key] = row[key]
    samples = row.get("samples")
    if not isinstance(samples, list) or len(samples) != 2:
        raise NotOurs(where=f"{where}.samples", wanted="a list of two lists", got=samples)
    subject, yardstick = (_numbers(side, f"{where}.samples[{n}]") for n, side in enumerate(samples))
    try:
        bar = Bar.parse(fields["bar"]) if fields["bar"] else None
        return summarise_samples(fields["name"], fields["unit"], bar, subject, yardstick)
    except ValueError as error:
        raise NotOurs(where=where, wanted="a bar and its samples", got=error) from None


def read(text: str) -> Run:
    """
    Read what `as_json` wrote, today's or that of before there was a *format*.

    Raises:
        NotOurs: If it is something else.
    """
    try:
        whole: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise NotOurs(where="the file", wanted="JSON as `run --json` writes it", got=error) from None
    if not isinstance(whole, dict):
        raise NotOurs(where="the file", wanted="an object", got=whole)
    if (form := whole.get("format", FORMAT)) != FORMAT:
        raise NotOurs(where="format", wanted=repr(FORMAT), got=form)
    if not isinstance(rows := whole.get("rows"), list):
        raise NotOurs(where="rows", wanted="a list", got=rows)
    if type(scale := whole.get("scale", 1.0)) not in (int, float):
        raise NotOurs(where="scale", wanted="a number", got=scale)
    results = tuple(_result(row, f"rows[{n}]") for n, row in enumerate(rows))
    names = [result.name for result in results]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise NotOurs(where="rows", wanted="each name once", got=twice)
    return Run(
        machine=_texts(whole.get("machine"), "machine"),
        scale=scale,
        results=results,
        absent=_texts(whole.get("without_figures"), "without_figures"),
    )
