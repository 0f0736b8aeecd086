"""What the client makes of an app's exit.

Source: BOINC's client/app_control.cpp, ACTIVE_TASK::handle_exited_app, as of 7.20.5.
"""

import math
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from vmwrapper.boinc.api import Request
from vmwrapper.boinc.slot_files import FINISH_FILE, TEMPORARY_EXIT_FILE
from vmwrapper.exit_status import ExitStatus
from vmwrapper.hostile import one_line

_LONGEST_DELAY_S = 86400.0
_DEFAULT_DELAY_S = 300.0
_LONGEST_LINE = 255
_FROM_OUTSIDE = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP}


class Fate(Enum):
    """What becomes of the job."""

    SUCCEEDED = "success"
    FAILED = "compute error"
    ABORTED = "aborted"
    RESTARTED = "started again"
    POSTPONED = "started again later"
    PREMATURE = "started again, and counted"
    """A job with a hundred such exits, or postponements, and no checkpoint is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one episode ended."""

    fate: Fate
    meaning: str
    """For a person."""
    exit_status: int = 0
    """What the client reports for a job that is over; it is the twin's own then."""
    delay_s: float = 0.0
    """For how long a job is postponed."""

    @property
    def is_final(self) -> bool:
        return self.fate in {Fate.SUCCEEDED, Fate.FAILED, Fate.ABORTED}


def judge(slot: Path, *, status: int, asked: Request | None, outputs: Sequence[Path]) -> Ending:
    """`status` is the process's, negative for a signal; `asked` is the quit or abort that was sent before its end."""
    if asked is Request.ABORT:
        meaning = f"{_described(status)}, which is ignored after an abort: aborted by its user"
        return Ending(fate=Fate.ABORTED, meaning=meaning, exit_status=ExitStatus.ABORTED_VIA_GUI)
    if asked is Request.QUIT:
        meaning = f"{_described(status)}, which is ignored after a quit: the client would start it again"
        return Ending(fate=Fate.RESTARTED, meaning=meaning)
    if status < 0:
        return _killed(status)
    return _postponed(slot) or _exited(slot, status, outputs)


def _exited(slot: Path, status: int, outputs: Sequence[Path]) -> Ending:
    if status:
        return Ending(fate=Fate.FAILED, meaning=f"exit status {status}: compute error", exit_status=status)
    if not (slot / FINISH_FILE).exists():
        meaning = f"exit status 0 without {FINISH_FILE}: premature, the client would start it again"
        return Ending(fate=Fate.PREMATURE, meaning=meaning)
    if absent := [path.name for path in outputs if not path.is_file()]:
        meaning = f"finished, but the output {one_line(absent[0])} is absent: compute error"
        return Ending(fate=Fate.FAILED, meaning=meaning, exit_status=ExitStatus.CHILD_FAILED)
    return Ending(fate=Fate.SUCCEEDED, meaning=f"exit status 0 and {FINISH_FILE}: success")


def _described(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"killed by signal {-status}"


def _killed(status: int) -> Ending:
    if -status in _FROM_OUTSIDE:
        meaning = f"{_described(status)}, from outside: the client would start it again"
        return Ending(fate=Fate.RESTARTED, meaning=meaning)
    return Ending(fate=Fate.FAILED, meaning=f"{_described(status)}: compute error", exit_status=ExitStatus.SIGNAL)


def _postponed(slot: Path) -> Ending | None:
    """Source: temporary_exit_file_present. A file without a reason is none."""
    try:
        with (slot / TEMPORARY_EXIT_FILE).open("rb") as file:
            delay, reason, notice = (file.readline(_LONGEST_LINE).decode(errors="replace") for _ in range(3))
    except OSError:
        return None
    if not reason:
        return None
    found = re.match(r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)", delay, re.IGNORECASE)
    try:
        delay_s = float(found[1]) if found else math.nan
    except ValueError:
        delay_s = math.nan
    if not 0 <= delay_s <= _LONGEST_DELAY_S:
        delay_s = _DEFAULT_DELAY_S
    shown = ", shown to the volunteer" if notice.startswith("notice") else ""
    meaning = f"temporary exit, postponed for {delay_s:g} s: {one_line(reason.strip())}{shown}"
    return Ending(fate=Fate.POSTPONED, meaning=meaning, delay_s=delay_s)
