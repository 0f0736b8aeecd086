"""What VMware writes into a machine's log, of which a few lines tell why the machine ends.

Source: logs that users of VMware's products have shown, since nothing else tells. The guest can write into it, too, and
so bring its own end about.
"""

import re
from contextlib import suppress
from pathlib import Path

from vmwrapper.errors import GuestPoweredOff, HostDiskFailed, VmwrapperError
from vmwrapper.hostile import printable

_MOST_BYTES = 1 << 20
_SHOWN = 5
_ENDS: tuple[tuple[re.Pattern[bytes], type[VmwrapperError], str], ...] = (
    (re.compile(rb"PIIX4: PM Soft Off"), GuestPoweredOff, "the guest powered itself off"),
    (
        re.compile(rb"The guest has requested that the virtual machine be (hard )?reset"),
        GuestPoweredOff,
        "the guest rebooted",
    ),
    (
        re.compile(rb"\[?msg\.hbacommon\.outofspace|There is no more space for virtual disk", re.IGNORECASE),
        HostDiskFailed,
        "the host's disk is full: VMware can't go on with the machine",
    ),
)
_COMPLAINT = re.compile(rb"^.*(?:\bMsg_Post: Error|PANIC|NOT_REACHED|Unrecoverable|\[msg\.).*$", re.MULTILINE)


class VmLog:
    """The log of one machine that is on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0
        self._complaints: list[bytes] = []
        self._rest = b""

    def end(self) -> VmwrapperError | None:
        """Why the machine ends, where what is new in the log tells that."""
        new = self._rest + self._new()
        whole, newline, self._rest = new.rpartition(b"\n")
        self._complaints = [*self._complaints, *_COMPLAINT.findall(whole + newline)][-_SHOWN:]
        return next((error(words) for pattern, error, words in _ENDS if pattern.search(new)), None)

    @property
    def complaints(self) -> str:
        """The last lines of it that VMware wrote as errors."""
        return printable(b"\n".join(self._complaints)) or "(nothing)"

    def _new(self) -> bytes:
        with suppress(OSError), self._file.open("rb") as file:
            end = file.seek(0, 2)
            if end < self._at:  # VMware has begun another one
                self._at = 0
            file.seek(max(self._at, end - _MOST_BYTES))
            self._at = end
            return file.read(_MOST_BYTES)
        return b""
