"""A rank's log, through `logging`: Ray Train writes it as JSON lines, in `logs/train` of Ray's session on its node.

Ray adds the time, level, run (`run_name`), `world_rank`, job and node to every record of the process; these are beside:
`run_id`, `rank`, `attempt` where it is known, and `step`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from pipelines.loop.keeping import ATTEMPT_TAG
from pipelines.loop.pulse import Pulse


class RankLog(logging.LoggerAdapter[logging.Logger]):
    """The log of one rank of a run."""

    def __init__(self, run_id: str, rank: int, pulse: Pulse) -> None:
        super().__init__(logging.getLogger("agmm"), {"run_id": run_id, "rank": rank})
        self._known, self._pulse = {"run_id": run_id, "rank": rank}, pulse

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add what is known."""
        return msg, {**kwargs, "extra": self._known | {"step": self._pulse.step}}

    def listening(self, tell: Callable[[Mapping[str, Any]], None]) -> Callable[[Mapping[str, Any]], None]:
        """`tell`, of which this log keeps what is said, and learns the attempt's number."""

        def tell_both(item: Mapping[str, Any]) -> None:
            if item.get("tag") == ATTEMPT_TAG:
                self._known["attempt"] = int(item["value"])
            elif "say" in item:
                self.info("%s", item["say"])
            tell(item)

        return tell_both
