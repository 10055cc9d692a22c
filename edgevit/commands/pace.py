"""How long a stage still takes, from the rate that was measured; nothing is said before there is one."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

WINDOW_S = 60.0
"""The rate is that of the last minute: machines warm up, and share their disks."""
KNOWN_S = 2.0
"""Of work, before a rate is one."""
MARK_S = 1.0

Clock = Callable[[], float]


@dataclass
class Pace:
    """One stage. Its first report is where the count begins: what came before it was loading and compiling."""

    clock: Clock = time.monotonic
    marks: deque[tuple[float, int]] = field(default_factory=deque)
    last: int = 0

    def left_s(self, done: int, total: int) -> float | None:
        """Seconds for what is left of `total`; None without a rate. A stage that starts over is a new one."""
        now = self.clock()
        if done < self.last:
            self.marks.clear()
        self.last = done
        if not self.marks or now - self.marks[-1][0] >= MARK_S:
            self.marks.append((now, done))
        while len(self.marks) > 1 and self.marks[1][0] <= now - WINDOW_S:
            self.marks.popleft()
        began, before = self.marks[0]
        if done == before or now - began < KNOWN_S:
            return None
        return (total - done) * (now - began) / (done - before)


def left_text(seconds: float | None) -> str:
    """For people, no finer than it is known.

    >>> left_text(None), left_text(41.2), left_text(400), left_text(9000)
    ('', '42 s left', '6.7 min left', '2.5 h left')
    """
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{math.ceil(seconds)} s left"
    return f"{seconds / 60:.1f} min left" if seconds < 6000 else f"{seconds / 3600:.1f} h left"
