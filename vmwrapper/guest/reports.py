"""What a program in the guest says of itself, by files that it writes: all of it hostile.

`None` is what makes no sense, as a number that is just being written.
"""

import math
import re
from dataclasses import dataclass

from vmwrapper.boinc.api import Operations
from vmwrapper.hostile import printable

FRACTION_DONE_BYTES = 32
"""So much of a file's end is looked at. Source: BOINC's samples/wrapper/wrapper.cpp."""
CREDIT_REPORT_BYTES = 128
"""So much of a file's end is looked at."""
TRIGGER_BYTES = 16_384
"""So much of a file's beginning is looked at."""
CPU_TIMES = "/proc/stat"
CPU_TIMES_BYTES = 256

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_MOST_OPERATIONS = 1e30  # more than all computers have done
_TICKS_PER_S = 100  # of Linux, whatever its kernel counts by itself
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq and softirq; source: Linux's Documentation/filesystems/proc.rst


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """By what a self-running guest says that it wants to end."""

    number: int | None
    """Its exit status, or after how many seconds it wants to go on; 0 where it says nothing. None: see above."""
    concerns_volunteer: bool
    message: str
    """Printable."""


def trigger(said: bytes) -> Trigger:
    """A number, 1 where the volunteer is to be shown the message, and the message: each begins a line.

    Source: BOINC's samples/vboxwrapper/vboxwrapper.cpp, read_completion_file_info, read_temporary_exit_file_info.
    """
    number, _, rest = said.partition(b"\n")
    notice, _, message = rest.partition(b"\n")
    return Trigger(
        number=_whole_number(number),
        concerns_volunteer=bool(_whole_number(notice)),
        message=printable(message),
    )


def _whole_number(line: bytes) -> int | None:
    text = line.strip()
    return int(text or b"0") if re.fullmatch(rb"([+-]?\d{1,9})?", text) else None


def fraction_done(end: bytes) -> float | None:
    """The last number, 0 to 1, in the end of a file."""
    fraction = last_number(end)
    return fraction if fraction is not None and 0 <= fraction <= 1 else None


def last_number(end: bytes) -> float | None:
    """The last number in the end of a file."""
    found = re.search(rf"(?:^|[^\w.+-])({_NUMBER})[^\w.+%-]*$", end.decode(errors="replace"), re.ASCII)
    return float(found[1]) if found else None


def operations(end: bytes) -> Operations | None:
    """Floating-point and integer operations: the two numbers of a file's last line."""
    lines = end.decode(errors="replace").strip().splitlines()
    found = re.fullmatch(rf"\s*({_NUMBER})\s+({_NUMBER})\s*", lines[-1]) if lines else None
    numbers = [float(number) for number in found.groups()] if found else [math.nan]
    if not all(0 <= number < _MOST_OPERATIONS for number in numbers):
        return None
    return Operations(floating_point=numbers[0], integer=numbers[1])


def cpu_time_s(proc_stat: bytes) -> float | None:
    """Seconds that the guest's kernel counts as work, of all its processors since its boot."""
    found = re.match(rb"cpu +((?:\d{1,15} ){7})", proc_stat)
    if found is None:
        return None
    ticks = [int(number) for number in found[1].split()]
    return sum(ticks[index] for index in _BUSY) / _TICKS_PER_S
