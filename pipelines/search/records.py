"""What is kept of a search: a record for the whole and one for each trial, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import UserError
from pipelines.search.space import Value
from pipelines.storage import Store

State = Literal["drawn", "running", "finished", "pruned", "failed"]
Stage = Literal["search", "proxy", "full"]
Ending = Literal["finished", "pruned", "failed"]


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Mutation(_Kept):
    """After `epoch` a trial went on from the weights of the trial `parent`; until then it had had `values`."""

    epoch: int
    parent: int
    values: dict[str, Value]


class TrialRecord(_Kept):
    """A trial. `epochs` are its metrics as reported, each with its `epoch`; `attempts` how often it was started.

    `values` are the current ones. Where `mutations` changed them during training, an epoch's metrics are of the
    weights and values that the trial had in that epoch: what a parent measured before stays in the parent's record.
    """

    number: int
    stage: Stage
    values: dict[str, Value]
    state: State = "drawn"
    cause: str = ""
    run_id: str | None = None
    epochs: tuple[dict[str, int | float], ...] = ()
    started: datetime | None = None
    ended: datetime | None = None
    attempts: int = 0
    mutations: tuple[Mutation, ...] = ()  # of scheduler=pbt, by epoch
    elapsed: float = 0.0  # seconds that the search had run, over all its drivers, when this was written

    @property
    def drawn(self) -> dict[str, Value]:
        """The values with which the trial began."""
        return self.mutations[0].values if self.mutations else self.values

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to train."""
        return self.state not in ("drawn", "running")

    @property
    def outcome(self) -> str:
        """Its state in a search that is over."""
        return self.state if self.has_ended else "cut short"

    @property
    def last_epoch(self) -> int:
        """The newest epoch with metrics, 0 before the first."""
        return int(max((metrics["epoch"] for metrics in self.epochs), default=0))


class Search(_Kept):
    """What a search is: `config` is the recipe's resolved tree, `tune` included; `proxy`: it begins with a proxy."""

    format: Literal[1] = 1
    code_version: str
    config: dict[str, Any]
    proxy: bool = False
    parent_run_id: str | None = None


_Model = TypeVar("_Model", bound=BaseModel)


def as_json(model: BaseModel) -> bytes:
    """A record as the content of its file."""
    return model.model_dump_json(indent=1).encode()


def read_record(store: Store, key: str, kind: type[_Model]) -> _Model:
    """The record at `key`. Raises UserError where it is damaged, ServiceError where it cannot be read."""
    try:
        return kind.model_validate_json(store.read(key))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise UserError(
            f"{store.uri}/{key} is damaged, or of another version of this program: {where + ': ' if where else ''}"
            f"{wrong['msg']}. Bring it back from a copy, or start a new search under another name."
        ) from error
