"""What `agmm models` says to people."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.output import say, show, table

if TYPE_CHECKING:
    from pipelines.promotion.promote import Decision

_WIDTH = 100
_MARKS = {True: "ok", False: "no", None: "-"}


def versions_table(rows: list[dict[str, Any]]) -> None:
    """All versions, a line each."""
    shown = [
        {
            "name": row["name"],
            "version": row["version"],
            "aliases": ", ".join(row["aliases"]) or "-",
            "top1": _figure(row["top1"]),
            "size_mb": _figure(row["size_mb"]),
            "data set": row["dataset"] or "-",
            "registered": _minute(row["created"]),
        }
        for row in rows
    ]
    table(shown, "no registered models yet: `agmm train` registers one")


def decision(found: Decision) -> None:
    """The bounds, how sure accuracies are, and what came of it."""
    if found.checks:
        click.echo(f"on {found.candidate['count']:,.0f} validation images of {found.data}")
        table([_check(check, found) for check in found.checks], "")
        _noise(found)
    for line in found.notes:
        _wrapped("Note: ", line)
    for reason in found.refused:
        _wrapped("Refused: ", reason)
    click.echo(_outcome(found))


def _check(check: Any, found: Decision) -> dict[str, Any]:
    row = {
        "metric": check.metric,
        "bound": f"{check.bound} {check.asked:g}",
        "limit": _figure(check.limit),
        f"version {found.version}": _figure(check.candidate),
    }
    if found.current:
        row[f"version {found.before}"] = _figure(check.current)
    return row | {"": _MARKS[check.passed]}


def _noise(found: Decision) -> None:
    """Binomial standard errors, so that nobody takes a difference within them for more than it is."""
    from pipelines.promotion.rules import standard_error

    sides = [figures for figures in (found.candidate, found.current) if "top1" in figures]
    errors = [standard_error(figures["top1"], figures["count"]) for figures in sides]
    words = [f"{figures['top1']:.4f} ± {error:.4f}" for figures, error in zip(sides, errors, strict=True)]
    if len(sides) == 1:
        click.echo(f"top1 {words[0]} (standard error)")
    if len(sides) > 1:
        both = sum(error**2 for error in errors) ** 0.5
        click.echo(f"top1 {words[0]} against {words[1]}: {sides[0]['top1'] - sides[1]['top1']:+.4f} ± {both:.4f}")
        click.echo("  (± is a standard error; that of the difference is less where both err on the same images)")


def _outcome(found: Decision) -> str:
    target = f"{found.name}@{found.alias}"
    was = "not set" if found.before is None else f"version {found.before}"
    if found.moved:
        return f"{target} is now version {found.version}, was {was}"
    if found.refused:
        return f"{target} is still {was}: version {found.version} is refused"
    if found.version == found.before:
        return f"{target} is still {was}"
    return f"{target} would be version {found.version}, is still {was}: --dry-run"


def version(found: dict[str, Any]) -> None:
    """All of one version, its card last."""
    facts = {key: found[key] for key in ("name", "version", "uri", "run_id", "code_version", "dataset")}
    facts |= {"aliases": ", ".join(found["aliases"]) or "-", "registered": _minute(found["created"])}
    facts |= {f"{split} data": digest for split, digest in found["data"].items()}
    facts |= {"top1": found["top1"], "size_mb": found["size_mb"]}
    show({key: "-" if value is None else value for key, value in facts.items()}, as_json=False)
    _section("recorded figures", [{"metric": key, "value": _figure(value)} for key, value in found["metrics"].items()])
    _section("files", [{"sha256": digest, "file": name} for name, digest in found["sha256"].items()])
    for what, told in found["decisions"].items():
        click.echo(f"\n{what}")
        _paragraph(_told(told))
    for alias, moves in found["history"].items():
        _section(f"history of @{alias}", [_move(move) for move in moves])
    if found["card"]:
        click.echo(f"\n{found['card'].rstrip()}")
    if found["problem"]:
        _wrapped("Warning: ", found["problem"])


def comparison(found: dict[str, Any]) -> None:
    """Two versions side by side."""
    first, second = (text.removeprefix("models:/") for text in found["columns"])
    second = second if second != first else f"{second} "
    what = f"measured on {found['data']}" if "data" in found else "as recorded when they were registered"
    click.echo(what)
    rows = [
        {
            "metric": row["metric"],
            first: _figure(row["a"]),
            second: _figure(row["b"]),
            "difference": _figure(row["difference"]),
        }
        for row in found["rows"]
    ]
    table(rows, "nothing is recorded of either")
    if "note" in found:
        _wrapped("Note: ", found["note"])


def _section(title: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        click.echo(f"\n{title}")
        table(rows, "")


def _move(move: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": _minute(move["time"]),
        "what": move["what"].replace("_", " "),
        "from": move["before"] or "-",
        "to": move["version"],
        "by": move["by"],
        "why": textwrap.shorten(move["why"] or "-", 40, placeholder="..."),
    }


def _told(told: Any) -> str:
    if not isinstance(told, dict):
        return str(told)
    return f"{_minute(str(told.get('time')))} by {told.get('by')}: {told.get('why') or 'no reason given'}"


def _minute(time: str) -> str:
    """`2026-11-23T23:47:05+00:00` as people read it, in UTC."""
    return time[:16].replace("T", " ")


def _paragraph(text: str) -> None:
    click.echo(textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))


def _wrapped(label: str, text: str) -> None:
    say(textwrap.fill(label + text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False))


def _figure(value: float | None) -> str:
    from pipelines.promotion.rules import figure

    return figure(value)
