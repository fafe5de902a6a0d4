"""The registry to look at: all versions, all that is known of one, two side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import registry
from pipelines.errors import Refused, ServiceError, UserError
from pipelines.progress import Say
from pipelines.promotion import history, names
from pipelines.promotion.artifact import (
    TOP1_TAG,
    VAL_TAG,
    address,
    data_path,
    download,
    is_figure,
    opened,
    recorded,
)
from pipelines.promotion.measure import measured, verified_data

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_DATASET, _SIZE = "agmm.dataset", "agmm.size_mb"
_CARD, _README = "model.json", "README.md"


def listing(client: MlflowClient) -> list[dict[str, Any]]:
    """All registered versions as `registry.versions` has them, with size, data set and UTC date."""
    found = names.pages(lambda token: client.search_model_versions(page_token=token))
    known = {(version.name, int(version.version)): version for version in found}
    return [row | _about(known[row["name"], row["version"]], row.get("top1")) for row in registry.versions(client)]


def described(client: MlflowClient, text: str) -> dict[str, Any]:
    """All that is known of the version that `text` names; its weights are not downloaded.

    `problem` says why the artifact's card could not be read, or which of its small files is not what was registered.

    Raises UserError where there is none.
    """
    version = names.resolve(client, text)
    model = names.model(client, version.name)
    mine = {alias for alias, number in names.aliases_of(model).items() if number == int(version.version)}
    card, text, problem = _small_files(version)
    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": sorted(mine),
        "uri": address(version),
        "run_id": version.run_id,
        **_about(version, _number(version.tags.get(TOP1_TAG))),
        "code_version": version.tags.get("agmm.code_version"),
        "data": {"train": version.tags.get("agmm.data.train"), "val": version.tags.get(VAL_TAG)},
        "sha256": recorded(version.tags),
        "metrics": card.metrics if card else {},
        "model": card.model.model_dump(mode="json") if card else {},
        "decisions": history.decisions(version.tags),
        "history": _history(model.tags),
        "tags": dict(version.tags),
        "card": text,
        "problem": problem,
    }


def compared(client: MlflowClient, first: str, second: str) -> dict[str, Any]:
    """What was recorded of two versions: `columns` their addresses, `rows` of metric, a, b and difference."""
    pair = [names.resolve(client, text) for text in (first, second)]
    return _side_by_side(pair, [_recorded_figures(version) for version in pair], "recorded")


def compared_now(client: MlflowClient, first: str, second: str, data_uri: str | None, say: Say) -> dict[str, Any]:
    """Two versions measured now, on the same images: the first's data set, or that at `data_uri`.

    Raises:
        Refused: where one is damaged or cannot run on this data, or the data is not the first's.
        UserError: where there is no such version or data set.

    """
    pair = [names.resolve(client, text) for text in (first, second)]
    tracking = str(client.tracking_uri)
    with ExitStack() as stack:
        artifacts = [stack.enter_context(opened(version, tracking)) for version in pair]
        folder = verified_data(artifacts[0], data_uri, say)
        figures = [measured(artifact, folder, tracking, say) for artifact in artifacts]
    others = artifacts[1].val_digest != artifacts[0].val_digest
    note = {"note": f"{address(pair[1])} was judged on another data set when it was trained"} if others else {}
    return _side_by_side(pair, figures, "measured") | {"data": str(folder)} | note


def _about(version: ModelVersion, top1: float | None) -> dict[str, Any]:
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return {
        "top1": top1 if top1 is not None else _number(version.tags.get(TOP1_TAG)),
        "size_mb": _number(version.tags.get(_SIZE)),
        "dataset": version.tags.get(_DATASET),
        "created": created.isoformat(timespec="seconds"),
    }


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and is_figure(text) else None


def _small_files(version: ModelVersion) -> tuple[registry.ModelCard | None, str, str]:
    """The card, its text for people, and what is wrong with either."""
    label = f"{version.name} version {version.version}"
    known = recorded(version.tags)
    with tempfile.TemporaryDirectory(prefix="agmm-show-") as scratch:
        root = Path(scratch)
        try:
            _fetch(version, "MLmodel", root)
            folder = data_path(label, root)
            card = registry.parse_card(_fetch(version, f"{folder}/{_CARD}", root), label)
            text = _fetch(version, f"{folder}/{_README}", root) if _README in known else b""
        except (Refused, ServiceError, UserError) as error:
            return None, "", str(error)
        changed = [name for name, digest in registry.file_hashes(root).items() if known.get(name) != digest]
    problem = f"{label}: {', '.join(changed)} is not what was registered" if changed else ""
    return card, text.decode(errors="replace"), problem


def _fetch(version: ModelVersion, path: str, root: Path) -> bytes:
    place = root / Path(path).parent
    place.mkdir(parents=True, exist_ok=True)
    return download(f"{address(version)}/{path}", str(place)).read_bytes()


def _recorded_figures(version: ModelVersion) -> dict[str, float]:
    card, _, problem = _small_files(version)
    if card is None:
        raise Refused(f"There is nothing to compare: {problem}")
    tags = {"top1": _number(version.tags.get(TOP1_TAG)), "size_mb": _number(version.tags.get(_SIZE))}
    return {name: value for name, value in tags.items() if value is not None} | card.metrics


def _side_by_side(pair: list[ModelVersion], figures: list[dict[str, float]], how: str) -> dict[str, Any]:
    first, second = figures
    rows = [
        {"metric": name, "a": a, "b": b, "difference": None if a is None or b is None else b - a}
        for name in dict.fromkeys([*first, *second])
        for a, b in [(first.get(name), second.get(name))]
    ]
    return {"columns": [address(version) for version in pair], "how": how, "rows": rows}


def _history(tags: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    aliases = [key.removeprefix(history.HISTORY_TAG) for key in sorted(tags) if key.startswith(history.HISTORY_TAG)]
    return {alias: [move.model_dump() for move in history.moves(tags, alias)] for alias in aliases}
