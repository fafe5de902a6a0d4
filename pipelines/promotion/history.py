"""What was decided, in MLflow's tags: on the version what became of it, on the model every move of an alias.

`agmm.history.ALIAS` of the registered model is a JSON list of moves, the oldest first; the oldest go when it gets too
long for a database. `agmm.promoted.ALIAS`, `agmm.refused.ALIAS` and `agmm.rolled_back.ALIAS` of a version say why.
"""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipelines.errors import Refused, ServiceError
from pipelines.promotion import names

if TYPE_CHECKING:
    from mlflow import MlflowClient

HISTORY_TAG = "agmm.history."  # and an alias
What = Literal["promoted", "refused", "rolled_back"]
_LONGEST = 4500  # characters; PostgreSQL and MySQL take 5000 in a registered model's tag
_LONGEST_WHY = 300


class Move(BaseModel):
    """An alias went to `version`; `before` is where it was, None for an alias that is new."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    what: Literal["promoted", "rolled_back"]
    version: int
    before: int | None = None
    time: str = Field(description="UTC, ISO 8601")
    by: str = ""
    why: str = ""


_MOVES = TypeAdapter(list[Move])


def stamp() -> dict[str, str]:
    """When, and who: what every decision says."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "unknown"
    return {"time": datetime.now(UTC).isoformat(timespec="seconds"), "by": f"{user}@{socket.gethostname()}"}


def moves(tags: Mapping[str, str], alias: str) -> list[Move]:
    """The moves of an alias, the oldest first. Raises Refused where somebody made the tag unreadable."""
    try:
        return _MOVES.validate_json(tags.get(HISTORY_TAG + alias, "[]"))
    except ValidationError as error:
        raise Refused(f"The tag {HISTORY_TAG}{alias} of the model is no list of moves: {error}. Delete it.") from error


def earlier(history: Sequence[Move], current: int | None) -> list[int]:
    """The versions that an alias had before `current`, the latest first; a way back takes one off.

    Where the alias was moved past this record, the latest that the record knows comes first.
    """
    line: list[int] = []
    for move in history:
        if move.what == "rolled_back":
            while move.version in line and line.pop() != move.version:
                pass
        elif move.before is not None and (not line or line[-1] != move.before):
            line.append(move.before)
        line.append(move.version)
    if line and line[-1] == current:
        line.pop()
    return [version for version in reversed(line) if version != current]


def move_alias(client: MlflowClient, name: str, alias: str, move: Move, details: Mapping[str, Any]) -> None:
    """Point an alias at a version and write the move, `details` with it on the version that it is about.

    Raises:
        Refused: where the alias is no longer where it was when the move was decided; nothing has changed then.
        ServiceError: where the alias was moved and MLflow then failed: it says so.

    """
    from mlflow.exceptions import MlflowException

    model = names.model(client, name)
    history, now = moves(model.tags, alias), names.aliases_of(model).get(alias)
    if now != move.before:
        raise Refused(
            f"{name}@{alias} was {_version(move.before)} when this was decided, and is {_version(now)} now: somebody "
            "else has moved it. It stays there. Run the command again."
        )
    client.set_registered_model_alias(name, alias, str(move.version))
    try:  # after the move: a record of what did not happen would send a rollback astray
        client.set_registered_model_tag(name, HISTORY_TAG + alias, _shortened([*history, move]))
        about = move.version if move.what == "promoted" else move.before
        if about is not None:
            note(client, name, about, alias, move.what, move.model_dump() | dict(details))
    except MlflowException as error:
        raise ServiceError(
            f"{name}@{alias} is version {move.version} now, and MLflow has no record of it: {error}"
        ) from error


def note(client: MlflowClient, name: str, number: int, alias: str, what: What, details: Mapping[str, Any]) -> None:
    """Write on a version what was decided about it."""
    client.set_model_version_tag(name, str(number), f"agmm.{what}.{alias}", json.dumps(details))


def decisions(tags: Mapping[str, str]) -> dict[str, Any]:
    """What was decided about a version, by `promoted.ALIAS` and so on."""
    kinds = ("agmm.promoted.", "agmm.refused.", "agmm.rolled_back.")
    return {key.removeprefix("agmm."): _read(text) for key, text in sorted(tags.items()) if key.startswith(kinds)}


def _shortened(history: Sequence[Move]) -> str:
    """The newest moves, as many as a database takes."""
    kept = [move.model_copy(update={"why": move.why[:_LONGEST_WHY]}) for move in history]
    while len(text := _MOVES.dump_json(kept).decode()) > _LONGEST and len(kept) > 1:
        kept = kept[1:]
    return text


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _version(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"
