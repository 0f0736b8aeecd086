"""VBox.log, in which a machine's process says how it is: asked there, VirtualBox's service sleeps."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from vmwrapper.errors import GuestPoweredOff, HostDiskFailed, MachineExited, VmwrapperError
from vmwrapper.hostile import printable

# From the line's beginning: a guest can have anything logged, behind words of VirtualBox's.
_STATE = re.compile(r"[\d:.]+ Changing the VM state from '\w+' to '(\w+)'")
_ERROR = re.compile(r'[\d:.]+ (?:Console: )?VM runtime error: fatal=\w+, errorID=(\w+) message="([^"]*)"')
_SERVES = re.compile(r"[\d:.]+ Guest Control: GUEST_MSG_REPORT_FEATURES")
_ENDED = re.compile(r"[\d:.]+ Console::powerDown\(\): A request to power off the VM")
_MOST_AT_ONCE_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 1 << 16


class Sign(Enum):
    """What is to be seen in a machine's log; the values end a sentence about it."""

    RUNS = "runs"
    STANDS = "stands still"
    RESETS = "was reset by its guest"
    POWERS_OFF = "was powered off"
    ENDED = "was powered off by somebody on the host"
    GURU = "was given up by VirtualBox (Guru Meditation)"
    ERROR = "met an error of the host"
    SERVES = "has a guest that takes commands"


_SIGNS = {
    "RUNNING": Sign.RUNS,
    "SUSPENDED": Sign.STANDS,
    "RESETTING": Sign.RESETS,
    "POWERING_OFF": Sign.POWERS_OFF,
    "GURU_MEDITATION": Sign.GURU,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One sign, with what was said of it."""

    sign: Sign
    words: str = ""


_ENDS: Mapping[Sign, tuple[type[VmwrapperError], str]] = {
    Sign.RESETS: (GuestPoweredOff, "the guest rebooted before the task was done"),
    Sign.POWERS_OFF: (GuestPoweredOff, "the guest powered off before the task was done"),
    Sign.ENDED: (
        MachineExited,
        "VirtualBox powered the machine off: somebody told it to, or its service has ended",
    ),
    Sign.GURU: (MachineExited, "VirtualBox gave up on the guest (Guru Meditation)"),
}
_DISK_ERRORS = ("DrvVD_", "DevATA_", "DevAHCI_", "BLKCACHE_")


def end_by(entry: Entry) -> VmwrapperError | None:
    """What it means for a machine that we have not powered off; None where that goes on."""
    if entry.sign is Sign.ERROR and any(name in entry.words for name in _DISK_ERRORS):
        return HostDiskFailed(f"the host's disk failed under the guest: {entry.words}")
    if entry.sign is Sign.ERROR:
        return MachineExited(f"VirtualBox stopped the guest: {entry.words}")
    if entry.sign not in _ENDS:
        return None
    kind, words = _ENDS[entry.sign]
    return kind(words)


class VmLog:
    """What was added to the file since the last look."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read_bytes = 0
        self._rest = b""
        self.state: Sign | None = None
        """RUNS or STANDS, as it was at the last look."""

    def look(self) -> list[Entry]:
        """The new entries, in their order."""
        entries: list[Entry] = []
        with suppress(OSError), self._file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < self._read_bytes:  # begun anew
                self._read_bytes, self._rest = 0, b""
            file.seek(self._read_bytes)
            while self._read_bytes < size and (added := file.read(_MOST_AT_ONCE_BYTES)):
                self._read_bytes += len(added)
                *lines, self._rest = (self._rest[-_LONGEST_LINE_BYTES:] + added).split(b"\n")
                entries += [entry for line in lines if (entry := _entry(line.decode(errors="replace")))]
        states = [entry.sign for entry in entries if entry.sign in (Sign.RUNS, Sign.STANDS)]
        self.state = states[-1] if states else self.state
        return entries


def _entry(line: str) -> Entry | None:
    if (found := _STATE.match(line)) and found[1] in _SIGNS:
        return Entry(_SIGNS[found[1]])
    if _ENDED.match(line):
        return Entry(Sign.ENDED)
    if _SERVES.match(line):
        return Entry(Sign.SERVES)
    if found := _ERROR.match(line):
        return Entry(Sign.ERROR, printable(f"{found[2]} ({found[1]})"))
    return None
