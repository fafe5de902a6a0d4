"""The driver's look at the pulses of all ranks: which one hangs, and which one is slow.

`judge` is pure; a `Watchdog` feeds it and says each finding once. Times are seconds of one clock of the driver.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from pipelines.loop.pulse import WAITS

TAG = "agmm.watchdog"
RESTART: Mapping[str, Any] = {"pulse": {"phase": "restart"}}  # the item of the controller: workers start anew
LOOK_EVERY_S = 5.0
_SILENT_S = 30.0  # without a pulse while others beat
_ALL_SILENT_S = 60.0
_STUCK_S = 45.0  # in one phase while others wait
_FIRST_STEP_S = 100.0  # the same in a first step, which compiles
_ALL_STUCK_S = 90.0
_STORING_S = 600.0  # in the place of all three while a rank stores a checkpoint
_FORGOTTEN_S = 300.0  # a silent rank, once others have come to life since
_SLOW, _NOISE_S = 5.0, 0.005  # times the others' median; what is below the noise is not slow
_STEP_ORDER = ("load", "forward", "backward", "exchange", "update")


@dataclass(frozen=True)
class Beat:
    """The last pulse of a rank."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    since: float  # seconds in the phase when it was sent
    done: int  # steps of this process
    at: float  # when it came
    busy: tuple[float, ...] = ()  # own seconds a step, of the last two windows in which the rank made steps
    life: str = ""  # of the process
    born: float = 0.0  # when its process was first heard of

    def stuck(self, now: float) -> float:
        """Seconds in its phase, as far as is known."""
        return self.since + now - self.at

    @property
    def waits(self) -> bool:
        """Whether it waits for other ranks."""
        return self.phase in WAITS

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a rank, or with all of them (-1)."""

    kind: str  # hung or slow
    rank: int
    text: str


def judge(beats: Mapping[int, Beat], now: float) -> list[Finding]:
    """What is wrong now, by rank; nothing of a run that goes on or starts."""
    ranks = [beats[rank] for rank in sorted(beats)]
    silent = _silent(ranks, now)
    heard = [beat for beat in ranks if beat.rank not in {finding.rank for finding in silent}]
    stuck = _behind(heard, now)
    if not silent and not stuck:
        stuck = _all_stuck(heard, now)
    return silent + stuck + _slow(heard)


def _silent(ranks: list[Beat], now: float) -> list[Finding]:
    """Ranks that were not heard of while others were: stopped, or on a node that is lost."""
    newest = max((beat.at for beat in ranks), default=now)
    limit = _SILENT_S if now - newest < _SILENT_S / 2 else _ALL_SILENT_S
    return [
        _hung(beat, f"has not been heard of for {now - beat.at:.0f} s; its last word was {_place(beat)}")
        for beat in ranks
        if now - beat.at > limit
    ]


def _behind(ranks: list[Beat], now: float) -> list[Finding]:
    """Ranks that others wait for."""
    return [
        _held_up(beat, now)
        for beat in ranks
        if not beat.waits
        and beat.stuck(now) > _limit(beat)
        and any(other.stuck(now) > _STUCK_S and (other.waits or _is_before(beat, other)) for other in ranks)
    ]


def _limit(beat: Beat) -> float:
    if beat.phase == "stage":
        return math.inf  # a data set may take hours, and says how it goes
    if beat.phase == "commit":
        return _STORING_S
    return _STUCK_S if beat.done else _FIRST_STEP_S


def _held_up(beat: Beat, now: float) -> Finding:
    if beat.phase != "commit":
        return _hung(beat, f"has been in {_place(beat)} for {beat.stuck(now):.0f} s, and the others wait for it")
    what = f"is storing a checkpoint of step {beat.step}, for {beat.stuck(now):.0f} s now, and the others wait for it"
    return Finding("hung", beat.rank, f"{beat} {what}")


def _is_before(beat: Beat, other: Beat) -> bool:
    """Whether a rank is at an earlier place of training; of other phases it is not known."""
    if beat.phase not in _STEP_ORDER or other.phase not in _STEP_ORDER:
        return False
    places = [(each.step, _STEP_ORDER.index(each.phase)) for each in (beat, other)]
    return places[0] < places[1]


def _all_stuck(ranks: list[Beat], now: float) -> list[Finding]:
    """All ranks stand still, once training has begun."""
    if not ranks or not all(beat.done for beat in ranks):
        return []
    still = min(beat.stuck(now) for beat in ranks)
    if still <= (_STORING_S if any(beat.phase == "commit" for beat in ranks) else _ALL_STUCK_S):
        return []
    where = "; ".join(f"{beat} in {_place(beat)}" for beat in ranks)
    return [Finding("hung", -1, f"no rank has moved for {still:.0f} s: {where}")]


def _slow(ranks: list[Beat]) -> list[Finding]:
    """Ranks whose own part of a step takes at least five times as long as the others', twice in a row."""
    known = [beat for beat in ranks if len(beat.busy) == 2]
    found = []
    for beat in known:
        others = [sum(other.busy) / 2 for other in known if other is not beat]
        if others and min(beat.busy) >= max(_SLOW * median(others), _NOISE_S):
            mine, theirs = 1000 * sum(beat.busy) / 2, 1000 * median(others)
            text = (
                f"{beat} is slow: its own part of a step (loading and forward pass) takes {mine:.0f} ms, "
                f"the others' {theirs:.0f} ms"
            )
            found.append(Finding("slow", beat.rank, text))
    return found


def _hung(beat: Beat, what: str) -> Finding:
    return Finding("hung", beat.rank, f"{beat} hangs: it {what}")


def _place(beat: Beat) -> str:
    return f"phase {beat.phase} of step {beat.step}{' (storing a checkpoint)' * (beat.phase == 'commit')}"


class Watchdog:
    """Takes pulses of however many ranks there are, and says what `judge` finds: once, and when it is over.

    Args:
        say: tells a line to whoever watches the run.
        tag: sets a tag of the tracking run; it may block and must not raise.
        clock: seconds.

    """

    def __init__(
        self, say: Callable[[str], None], tag: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._tag, self._clock, self._lock = say, tag, clock, threading.Lock()
        self._beats: dict[int, Beat] = {}
        self._ended: set[str] = set()  # lives of workers that are not coming back
        self._active: dict[tuple[str, int], str] = {}
        self._looked = clock()

    def take(self, item: Mapping[str, Any]) -> None:
        """Take an item `{"pulse": {...}}`, see `pulse.Pulse.item` and `RESTART`: a listener of the board."""
        pulse = item["pulse"]
        with self._lock:
            if item == RESTART:
                self._ended |= {beat.life for beat in self._beats.values()}
                self._beats.clear()
            elif pulse["life"] not in self._ended:  # the last words of one that is being ended may come late
                self._hear(pulse)

    def _hear(self, pulse: Mapping[str, Any]) -> None:
        rank, now = pulse["rank"], self._clock()
        before = self._beats.get(rank)
        if pulse["phase"] == "end":
            if before and before.life == pulse["life"]:
                del self._beats[rank]
            return
        if before and before.life != pulse["life"]:
            self._beats.clear()  # Ray Train has started all workers anew, perhaps fewer
            before = None
        windows, born = (before.busy, before.born) if before else ((), now)
        if pulse["steps"]:
            windows = (*windows, pulse["busy"])[-2:]
        told = {key: value for key, value in pulse.items() if key not in ("busy", "steps", "seconds", "notes")}
        self._beats[rank] = Beat(**told, at=now, busy=windows, born=born)

    def look(self) -> None:
        """Judge, and say what is new and what is over."""
        with self._lock:
            now = self._clock()
            if now - self._looked > 3 * LOOK_EVERY_S:  # the driver itself was stopped: silence proves nothing
                self._beats = {rank: replace(beat, at=now) for rank, beat in self._beats.items()}
            self._looked = now
            self._forget_ghosts(now)
            found, here = judge(self._beats, now), set(self._beats)
        self._tell({(finding.kind, finding.rank): finding.text for finding in found}, here)

    def _forget_ghosts(self, now: float) -> None:
        """Drop ranks that nobody ended in words, and that fewer workers have replaced."""
        youngest = max((beat.born for beat in self._beats.values()), default=now)
        for rank, beat in list(self._beats.items()):
            if now - beat.at > _FORGOTTEN_S and beat.at < youngest:
                del self._beats[rank]

    def _tell(self, found: dict[tuple[str, int], str], here: set[int]) -> None:
        new = [text for key, text in found.items() if key not in self._active]
        over = [key for key in self._active if key not in found]
        for text in new:
            self._say(f"watchdog: {text}")
        for kind, rank in over:
            self._say(f"watchdog: {_recovery(kind, rank, here)}")
        last = [text for key, text in self._active.items() if key in over]
        self._active = {key: self._active.get(key, text) for key, text in found.items()}
        if new or over:
            self._tag(TAG, "; ".join(self._active.values()) or f"over: {'; '.join(last)}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look every few seconds, in a thread, while the context lasts."""
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(ended,), daemon=True, name="watchdog")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=LOOK_EVERY_S)

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(LOOK_EVERY_S):
            self.look()


def _recovery(kind: str, rank: int, here: set[int]) -> str:
    if not here:
        return "the processes of all ranks are gone"
    if rank >= 0 and rank not in here:
        return f"the process of rank {rank} is gone"
    who = "the ranks" if rank < 0 else f"rank {rank}"
    if kind == "slow":
        return f"{who} is as fast as the others again"
    return f"{who} {'move' if rank < 0 else 'moves'} again"
