"""How long a search whose experts are used block by block will take, said after its first step."""

import time

from glue_cli.foundation.progress import Noted, Progress
from glue_cli.foundation.units import duration
from glue_cli.search.protocol import Blends

_LONG_S = 600  # a shorter search is not worth a word


class Pace:
    """Watches a search whose experts are used block by block, and says once how long it will take, if that is long."""

    def __init__(self, blends: Blends, progress: Progress) -> None:
        self._blends, self._progress = blends, progress
        self._began, self._waited_s, self._is_said = time.monotonic(), blends.waited_s, blends.is_resident

    def step(self, share: float) -> None:
        """Hear that a step has ended, and which share of the search is done, in [0, 1]."""
        if self._is_said or share <= 0:
            return
        self._is_said = True
        elapsed = time.monotonic() - self._began
        if elapsed / share > _LONG_S:
            waiting = (self._blends.waited_s - self._waited_s) / elapsed
            text = f"the search will take about {duration(elapsed / share)}"
            text += f", {waiting:.0%} of that waiting for the experts"
            self._progress(Noted(f"{text}; a smaller --budget ends it earlier", warning=True))
