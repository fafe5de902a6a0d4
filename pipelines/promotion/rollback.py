"""The way back: an alias returns to the version that it had before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.errors import UserError
from pipelines.promotion import history, names
from pipelines.promotion.artifact import opened

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Return:
    """An alias went, or would go, from version `before` to `version`; `deleted` versions between were passed over."""

    name: str
    alias: str
    version: int
    before: int | None
    moved: bool
    dry_run: bool
    deleted: tuple[int, ...] = ()


def rollback(client: MlflowClient, name: str, alias: str, *, why: str = "", dry_run: bool = False) -> Return:
    """Point an alias at the version that it had before, once that is seen to be whole.

    Raises:
        UserError: where the alias had none before, or there is no such model.
        Refused: where that version is damaged, or somebody else moved the alias meanwhile. It stays where it is.
        ServiceError: where a service does not answer.

    """
    names.check_alias(alias)
    there = names.versions_of(client, name)
    model = names.model(client, name)
    before = names.aliases_of(model).get(alias)
    earlier = history.earlier(history.moves(model.tags, alias), before)
    target = next((number for number in earlier if number in there), None)
    if target is None:
        had = f"had {', '.join(map(str, earlier))}, deleted since" if earlier else "had none before it"
        raise UserError(f"Nothing to roll back to: {name}@{alias} {had}. `agmm models promote` moves it forward.")
    with opened(there[target], str(client.tracking_uri)):
        pass  # that it opens is what matters
    if not dry_run:
        move = history.Move(what="rolled_back", version=target, before=before, why=why, **history.stamp())
        history.move_alias(client, name, alias, move, {})
    passed_over = tuple(earlier[: earlier.index(target)])
    return Return(name, alias, target, before, moved=not dry_run, dry_run=dry_run, deleted=passed_over)
