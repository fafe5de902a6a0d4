"""Names, versions and aliases as people write them, looked up in the registry."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_ALIAS = re.compile(r"(?!latest$|v\d+$)[\w-]{1,100}", re.IGNORECASE | re.ASCII)  # without what MLflow keeps for itself


def resolve(client: MlflowClient, text: str) -> ModelVersion:
    """The version that NAME, NAME@alias or NAME/version means, with or without `models:/`; of a NAME, the newest.

    Raises UserError where there is none.
    """
    text = text.removeprefix("models:/")
    name, at, alias = text.partition("@")
    if at:
        number = aliases(client, name).get(alias)
        if number is None:
            known = ", ".join(sorted(aliases(client, name))) or "none yet"
            raise UserError(f"{name} has no alias {alias!r}. Known: {known}. `agmm models promote` sets one.")
        return find_version(client, name, number)
    name, slash, number_text = text.rpartition("/") if "/" in text else (text, "", "")
    if slash and not number_text.isdecimal():
        raise UserError(f"{text!r} names no version. Allowed: NAME, NAME@alias, NAME/3.")
    return find_version(client, name, int(number_text) if slash else None)


def find_version(client: MlflowClient, name: str, number: int | None) -> ModelVersion:
    """A version of a model, by default the newest. Raises UserError, with what is known, where there is none."""
    known = versions_of(client, name)
    if number is None and known:
        return known[max(known)]
    if number not in known:
        numbers = ", ".join(map(str, sorted(known))) or "none"
        which = "no versions" if number is None else f"no version {number}. Known: {numbers}"
        raise UserError(f"{name} has {which}. See `agmm models list`.")
    return known[number]


def versions_of(client: MlflowClient, name: str) -> dict[int, ModelVersion]:
    """All versions of a model, by number. Raises UserError where there is no such model."""
    model(client, name)
    found = pages(lambda token: client.search_model_versions(f"name = '{name}'", page_token=token))
    return {int(version.version): version for version in found}


def aliases(client: MlflowClient, name: str) -> dict[str, int]:
    """Where each alias of a model points now. Raises UserError where there is no such model."""
    return aliases_of(model(client, name))


def aliases_of(found: RegisteredModel) -> dict[str, int]:
    """Where each alias of a model pointed when it was looked up."""
    return {alias: int(number) for alias, number in found.aliases.items()}


def model(client: MlflowClient, name: str) -> RegisteredModel:
    """A registered model. Raises UserError, with those that are known, where there is none of that name."""
    from mlflow.exceptions import MlflowException

    try:
        if name and "'" not in name:
            return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # or cannot be a name
            raise
    names = sorted(each.name for each in pages(lambda token: client.search_registered_models(page_token=token)))
    raise UserError(f"Unknown model {name!r}. Known: {', '.join(names) or 'none yet'}. See `agmm models list`.")


def check_alias(alias: str) -> str:
    """An alias that MLflow takes. Raises UserError."""
    if not _ALIAS.fullmatch(alias):
        raise UserError(
            f"{alias!r} cannot be an alias. Allowed: letters, digits, dashes and underscores, at most 100, "
            "but neither `latest` nor v and a number. For example champion."
        )
    return alias


def pages(ask: Callable[[str | None], Any]) -> Iterable[Any]:
    """The items of all pages of a search of MLflow, which is asked with a page's token."""
    token: str | None = None
    while True:
        page = ask(token)
        yield from page
        token = page.token or None
        if token is None:
            return
