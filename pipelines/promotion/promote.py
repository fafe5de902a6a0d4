"""Promotion: an alias moves to a version that is whole, measured on its own data set, and passes a gate."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.gate import GateConfig
from pipelines.errors import Refused, ServiceError
from pipelines.progress import Say
from pipelines.promotion import history, names
from pipelines.promotion.artifact import TOP1_TAG, VAL_TAG, Artifact, opened
from pipelines.promotion.measure import measured, verified_data
from pipelines.promotion.rules import Check, figure, judge

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_SAME_TOP1 = 1e-3  # a mixed precision in training moves an image in a thousand


@dataclass(frozen=True)
class Asked:
    """What is asked of a promotion.

    `number` is the version, by default the newest; `data_uri` where the data set is, by default where the version was
    trained. `replace_damaged`: where the current version is damaged or cannot be measured, do without the comparison.
    """

    name: str
    alias: str = "champion"
    number: int | None = None
    gate: GateConfig = field(default_factory=GateConfig)
    data_uri: str | None = None
    dry_run: bool = False
    replace_damaged: bool = False


@dataclass(frozen=True)
class Decision:
    """What came of it. `version` is the candidate, `before` where the alias was; `refused` says why not."""

    name: str
    alias: str
    version: int
    before: int | None
    moved: bool = False
    dry_run: bool = False
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    candidate: dict[str, float] = field(default_factory=dict)
    current: dict[str, float] = field(default_factory=dict)
    data: str = ""
    val_digest: str = ""

    @property
    def why(self) -> str:
        """The bounds that were met, or the reasons of a refusal, in a line."""
        return "; ".join(self.refused or [*map(_met, self.checks), *self.notes])


def promote(client: MlflowClient, asked: Asked, say: Say) -> Decision:
    """Decide about a version, point the alias at it if it passes, and write down why, or why not.

    Raises:
        UserError: for a model, version, alias or data set that is not there. Nothing is written.
        ServiceError: where a service does not answer.

    """
    names.check_alias(asked.alias)
    version = names.find_version(client, asked.name, asked.number)
    before = names.aliases(client, asked.name).get(asked.alias)
    decision = Decision(asked.name, asked.alias, int(version.version), before, dry_run=asked.dry_run)
    if before == decision.version:
        return replace(decision, notes=(f"{asked.name}@{asked.alias} is version {before} already",))
    try:
        decision = _judged(client, asked, version, decision, say)
        if not asked.dry_run and not decision.refused:
            _move(client, asked, decision)
            return replace(decision, moved=True)
    except Refused as error:
        decision = replace(decision, refused=(str(error),))
    if not asked.dry_run:
        _note_refusal(client, asked, decision)
    return decision


def _judged(client: MlflowClient, asked: Asked, version: ModelVersion, decision: Decision, say: Say) -> Decision:
    """The decision with figures and checks. Raises Refused where it does not come to that."""
    tracking = str(client.tracking_uri)
    with opened(version, tracking) as candidate:
        folder = verified_data(candidate, asked.data_uri, say)
        current, about_current = _measured_current(client, asked, decision.before, candidate, folder, say)
        own = measured(candidate, folder, tracking, say)
    checks = tuple(judge(asked.gate, own, current))
    return replace(
        decision,
        candidate=own,
        current=current or {},
        checks=checks,
        refused=tuple(check.reason for check in checks if check.passed is False),
        notes=(*about_current, *_rolled_back(version, asked.alias), *_other_record(version, own)),
        data=str(folder),
        val_digest=str(version.tags[VAL_TAG]),
    )


def _measured_current(
    client: MlflowClient, asked: Asked, number: int | None, candidate: Artifact, folder: Path, say: Say
) -> tuple[dict[str, float] | None, tuple[str, ...]]:
    """Figures of the version that the alias has now, if there are any, and what is to say about that."""
    if number is None:
        return None, (f"no version is {asked.name}@{asked.alias} yet: bounds against it do not apply",)
    version = names.find_version(client, asked.name, number)
    _check_same_data(asked, version, candidate)
    tracking = str(client.tracking_uri)
    try:
        with opened(version, tracking) as current:
            return measured(current, folder, tracking, say), ()
    except (Refused, ServiceError) as error:
        if not asked.replace_damaged:
            raise Refused(
                f"the current version cannot be compared with: {error} "
                "With --replace-damaged only the bounds at_least and at_most decide."
            ) from error
        return None, (f"the current version is left out: {error}",)


def _check_same_data(asked: Asked, version: ModelVersion, candidate: Artifact) -> None:
    other = version.tags.get(VAL_TAG, candidate.val_digest)  # a version without one has no record, and is refused so
    if asked.gate.same_data and other != candidate.val_digest:
        raise Refused(
            f"another data set: the figures of version {candidate.version.version} are of validation images with "
            f"content digest {candidate.val_digest}, those of {asked.name}@{asked.alias}, version {version.version}, "
            f"of {other}. `same_data: false` in the gate file compares both on the former."
        )


def _rolled_back(version: ModelVersion, alias: str) -> tuple[str, ...]:
    told = history.decisions(version.tags).get(f"rolled_back.{alias}")
    if not isinstance(told, dict):
        return ()
    return (f"version {version.version} was rolled back on {told.get('time')}: {told.get('why') or 'no reason given'}",)


def _other_record(version: ModelVersion, own: dict[str, float]) -> tuple[str, ...]:
    recorded = float(version.tags[TOP1_TAG])
    if abs(recorded - own["top1"]) < _SAME_TOP1:
        return ()
    return (
        f"version {version.version} was registered with top1 {figure(recorded)}, and has {figure(own['top1'])} now",
    )


def _move(client: MlflowClient, asked: Asked, decision: Decision) -> None:
    move = history.Move(
        what="promoted", version=decision.version, before=decision.before, why=decision.why, **history.stamp()
    )
    history.move_alias(client, asked.name, asked.alias, move, _details(asked, decision))


def _note_refusal(client: MlflowClient, asked: Asked, decision: Decision) -> None:
    told = {"what": "refused", "before": decision.before, "why": decision.why, **history.stamp()}
    history.note(client, asked.name, decision.version, asked.alias, "refused", told | _details(asked, decision))


def _details(asked: Asked, decision: Decision) -> dict[str, Any]:
    """The figures of a decision, and the rules that it went by."""
    kept = {key: value for key, value in asdict(decision).items() if key in ("candidate", "current", "val_digest")}
    return kept | {"gate": asked.gate.model_dump(mode="json", exclude_none=True)}


def _met(check: Check) -> str:
    if check.passed is None:
        return f"{check.metric} {figure(check.candidate)}"
    return f"{check.metric} {figure(check.candidate)} ({check.bound} {check.asked:g}, limit {figure(check.limit)})"
