"""A file by which a self-running guest says that it wants to end: when it counts.

A guest does not write it in one step, and may stand still in the middle of that.
"""

from vmwrapper.clock import RunningClock
from vmwrapper.guest.reports import TRIGGER_BYTES, Trigger, trigger
from vmwrapper.shared_folder import SharedFolder, Stamp

_SETTLED_S = 2.0
_UNENDED_S = 10.0
"""For one that has no line that is ended, as an empty one."""


class TriggerFile:
    """Counts once it has not changed for 2 s in which the guest ran: 10 s where not even its first line is ended."""

    def __init__(self, folder: SharedFolder, name: str | None, clock: RunningClock) -> None:
        """None for a name stands for none, which never counts."""
        self._folder = folder
        self._name = name
        self._clock = clock
        self._seen: Stamp | None = None
        self._since_s = 0.0

    def look(self) -> Trigger | None:
        """What it says, once it counts. Raises HostDiskFailed."""
        found = self._folder.beginning(self._name, limit_bytes=TRIGGER_BYTES) if self._name else None
        if found is None or found.stamp != self._seen:
            self._seen, self._since_s = found.stamp if found else None, self._clock.elapsed_s
            return None
        settled_s = _SETTLED_S if b"\n" in found.content else _UNENDED_S
        return trigger(found.content) if self._clock.elapsed_s - self._since_s >= settled_s else None

    def last(self) -> Trigger | None:
        """What it says, whatever that is, once the guest has ended. Raises HostDiskFailed."""
        found = self._folder.beginning(self._name, limit_bytes=TRIGGER_BYTES) if self._name else None
        return trigger(found.content) if found else None

    def remove(self) -> None:
        """Have none. Raises HostDiskFailed."""
        if self._name:
            self._folder.remove(self._name)
        self._seen = None
