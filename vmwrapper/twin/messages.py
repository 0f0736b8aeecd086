"""What client and app tell each other through the shared memory."""

import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vmwrapper.boinc.channels import Channel
from vmwrapper.twin.slot import Memory

_OPPOSITE = {"suspend": "resume", "resume": "suspend"}
_FIGURE = r"<{}>\s*([^<\s]+)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the client knows of a job's progress."""

    cpu_time_s: float = 0.0
    checkpoint_cpu_time_s: float = 0.0
    fraction_done: float = 0.0
    other_pid: int | None = None


def read_status(message: str, before: Figures) -> Figures:
    """What an app's status says. Both CPU times are 0 where they are missing; no fraction done, or 0, changes nothing.

    Source: BOINC's client/app_control.cpp, ACTIVE_TASK::get_app_status_msg.
    """
    other_pid = _figure("other_pid", message)
    return Figures(
        cpu_time_s=_figure("current_cpu_time", message) or 0.0,
        checkpoint_cpu_time_s=_figure("checkpoint_cpu_time", message) or 0.0,
        fraction_done=_figure("fraction_done", message) or before.fraction_done,
        other_pid=before.other_pid if other_pid is None else int(other_pid),
    )


def _figure(tag: str, message: str) -> float | None:
    found = re.search(_FIGURE.format(tag), message)
    try:
        number = float(found[1]) if found else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def heartbeat(*, working_set_bytes: float, most_bytes: float, network_suspended: bool) -> str:
    network = "<network_suspended/>" if network_suspended else ""
    return f"<heartbeat/><wss>{working_set_bytes:e}</wss><max_wss>{most_bytes:e}</max_wss>{network}"


class ControlQueue:
    """The client's requests on their way to the app: one at a time, the next when the last has been read.

    Source: BOINC's lib/app_ipc.cpp, MSG_QUEUE, and client/app_control.cpp, ACTIVE_TASK::suspend and unsuspend.
    """

    def __init__(self, memory: Memory, now_s: Callable[[], float]) -> None:
        self._memory = memory
        self._now_s = now_s
        self._waiting: deque[str] = deque()
        self._blocked_since_s: float | None = None

    def put(self, request: str) -> None:
        """Send it, now or later. A suspend and a resume that both still wait cancel each other out."""
        opposite = _OPPOSITE.get(request, "")
        if opposite in self._waiting:
            self._waiting.remove(opposite)
        else:
            self._waiting.append(request)
            self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        while self._waiting and self._memory.send(Channel.PROCESS_CONTROL_REQUEST, f"<{self._waiting[0]}/>"):
            self._waiting.popleft()
            self._blocked_since_s = None
        if not self._waiting:
            self._blocked_since_s = None
        elif self._blocked_since_s is None:
            self._blocked_since_s = self._now_s()

    @property
    def blocked_s(self) -> float:
        """For how long a request has waited for another to be read."""
        return 0.0 if self._blocked_since_s is None else self._now_s() - self._blocked_since_s

    def clear(self) -> None:
        """As before each start."""
        self._waiting.clear()
        self._blocked_since_s = None
