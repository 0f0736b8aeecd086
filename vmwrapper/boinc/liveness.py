"""Whether the client is still there.

Source: BOINC's api/boinc_api.cpp, client_dead and the timer's heartbeat check.
"""

import os
import sys
from collections.abc import Callable

import psutil

_LOOK_EVERY_S = 1.0
_WITHOUT_HEARTBEAT_S = 30.0


class Liveness:
    """Of one client: by its process, or where it doesn't say that, by its heartbeat. Who has gone has gone for good."""

    def __init__(self, client_pid: int, now_s: Callable[[], float]) -> None:
        self.has_gone = False
        self.heard_at_s = now_s()
        self._pid = client_pid
        self._now_s = now_s
        self._looked_at_s = now_s()

    def heard(self) -> None:
        """Its heart beats."""
        self.heard_at_s = self._now_s()

    def look(self, *, is_news: bool) -> bool:
        """Whether it has gone. News may be a heartbeat, or another client's: so look before any are read."""
        now_s = self._now_s()
        if self.has_gone:
            return True
        if not self._pid:
            self.has_gone = not is_news and now_s - self.heard_at_s > _WITHOUT_HEARTBEAT_S
        elif is_news or now_s - self._looked_at_s >= _LOOK_EVERY_S:
            self._looked_at_s = now_s
            self.has_gone = not _exists(self._pid)
        return self.has_gone


def _exists(pid: int) -> bool:
    if sys.platform == "win32":
        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        return True
    return True
