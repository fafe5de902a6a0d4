"""What all sections of a configuration share, and how a mapping becomes one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipelines.errors import UserError
from pipelines.names import NAME as NAME
from pipelines.names import has_unseen
from pipelines.secrets import ADVICE, has_credentials, redacted

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Frozen; unknown keys are refused, and so are addresses with credentials and characters that cannot be seen.

    The tree is stored with the run, and much of it becomes paths and keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, str) and has_credentials(value):
            raise ValueError(f"the address has credentials in it, and would be stored with the run. {ADVICE}")
        if isinstance(value, str) and has_unseen(value):
            raise ValueError("has characters that cannot be seen")
        return value


_Kind = TypeVar("_Kind", bound=BaseModel)


def parse_section(kind: type[_Kind], tree: Mapping[str, Any], *, origin: str, what: str) -> _Kind:
    """A plain mapping as a checked section; errors call it `origin`, and say that it is no valid `what`.

    Raises UserError.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(kind, item)}" for item in error.errors())
        raise UserError(f"{origin} is not a valid {what}:\n{lines}") from error


def _explain(kind: type[BaseModel], item: Mapping[str, Any]) -> str:
    """One pydantic error as: where, what is wrong, what came, what is allowed."""
    where = ".".join(str(part) for part in item["loc"]) or "the tree"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key. Known here: {', '.join(_section_of(kind, item['loc']).model_fields)}."
    if item["type"] == "missing":
        return f"{where}: required, and missing."
    came = "" if isinstance(item["input"], Mapping | BaseModel) else f" Got {redacted(repr(item['input']))}."
    return f"{where}: {item['msg'].removeprefix('Value error, ').rstrip('.')}.{came}"


def _section_of(section: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel]:
    for part in location[:-1]:
        field = section.model_fields.get(str(part))  # none for the place in a list
        section = next(_sections(field.annotation), section) if field else section
    return section


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation is made of."""
    if _is_section(annotation):
        yield annotation
    for each in get_args(annotation):
        yield from _sections(each)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
