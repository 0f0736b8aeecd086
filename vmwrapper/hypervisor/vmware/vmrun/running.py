"""The process that runs a machine: vmware-vmx, which vmrun leaves behind, a child of nobody.

Its last argument is the machine's .vmx file: by that it is known.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

_PROGRAM = "vmware-vmx"
_ENDING_LIMIT_S = 5.0


class Running:
    """One that was there. Of a process that has ended, all is as it last was."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.pid = process.pid
        self._cpu_time_s = 0.0

    @property
    def is_alive(self) -> bool:
        with suppress(psutil.Error):
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        return False

    def cpu_time_s(self) -> float:
        """CPU time that it has used. Never falls, also after its end."""
        with suppress(psutil.Error):
            times = self._process.cpu_times()
            self._cpu_time_s = max(self._cpu_time_s, times.user + times.system)
        return self._cpu_time_s

    def working_set_bytes(self) -> int:
        """Its memory in RAM; 0 after its end."""
        with suppress(psutil.Error):
            return int(self._process.memory_info().rss)
        return 0

    def be_nice(self, niceness: int | None) -> None:
        """Let others go first, at least as much as ours do; None for just so much.

        It has a session of its own, which on Linux is a group by itself, whose niceness is what others feel.
        """
        with suppress(psutil.Error, OSError):
            if sys.platform == "win32":
                if niceness:
                    self._process.nice(psutil.IDLE_PRIORITY_CLASS)
                return
            most = max(self._process.nice(), os.nice(0), niceness or 0)
            self._process.nice(most)
            if (group := Path(f"/proc/{self.pid}/autogroup")).exists():
                group.write_text(str(most), encoding="ascii")

    def stop(self) -> None:
        """Have it stand still, for products that can't pause a machine; its guest's clock then jumps."""
        with suppress(psutil.Error):
            self._process.suspend()

    def go(self) -> None:
        """Have it go on after `stop`."""
        with suppress(psutil.Error):
            self._process.resume()

    def kill(self) -> None:
        """End it at once. Blocks until it has ended, which takes no time."""
        with suppress(psutil.Error):
            self._process.kill()
            self._process.wait(timeout=_ENDING_LIMIT_S)


def running(vmx: Path) -> list[Running]:
    """Those that run the machine; at most one, but for VMware's own mistakes."""
    return [Running(process) for process, file in _all() if _is_same(file, vmx)]


def running_files() -> list[Path]:
    """The .vmx files of all machines of VMware's that run and that we may know of."""
    return [file for _, file in _all()]


def _all() -> Iterator[tuple[psutil.Process, Path]]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if len(words) > 1 and _is_program(words[0]) and process.status() != psutil.STATUS_ZOMBIE:
                yield process, Path(words[-1])


def _is_program(word: str) -> bool:
    """Also its variants for debugging, `vmware-vmx-debug` and `vmware-vmx-stats`."""
    return word.replace("\\", "/").rpartition("/")[2].lower().startswith(_PROGRAM)


def _is_same(one: Path, other: Path) -> bool:
    return one == other or os.path.normcase(os.path.realpath(one)) == os.path.normcase(os.path.realpath(other))
