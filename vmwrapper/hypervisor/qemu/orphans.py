"""QEMU's processes whose wrapper is gone: rare, since the kernel ends them with it once it knows of their bond."""

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from vmwrapper.errors import ProcessFailed
from vmwrapper.folders import MACHINE_FOLDER
from vmwrapper.hostile import one_line
from vmwrapper.hypervisor.interface import Leftover, MachineIdentity, slot_in
from vmwrapper.hypervisor.qemu.command import name_option

log = logging.getLogger(__name__)

_PREFIX = name_option(MachineIdentity("", "", "")).split()[0]
_ENDING_LIMIT_S = 5.0
_LOOK_S = 0.02
_INIT = 1


def end(identity: MachineIdentity) -> None:
    """End the QEMU of an earlier episode of this job."""
    name = name_option(identity)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if name in process.cmdline():
                log.warning("ending QEMU %d, left over from an earlier episode", process.pid)
                process.kill()
                process.wait(timeout=_ENDING_LIMIT_S)


def found() -> Sequence[Leftover]:
    """See `Hypervisor.leftovers`."""
    return list(_found())


def _found() -> Iterator[Leftover]:
    user = psutil.Process().username()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if (name := _name(process.cmdline())) is None or process.username() != user or _has_wrapper(process):
                continue
            if slot := slot_in(name.removeprefix("guest=").replace(",,", ",")):
                yield _leftover(process, slot=slot)


def _leftover(process: psutil.Process, *, slot: Path) -> Leftover:
    async def remove() -> None:
        await asyncio.to_thread(_end, process)

    return Leftover(
        what=f"QEMU's process {process.pid} of {one_line(str(slot))}",
        slot=slot,
        files=slot / MACHINE_FOLDER,
        remove=remove,
    )


def _end(process: psutil.Process) -> None:
    """Also of one that nobody reaps."""
    try:
        process.kill()
        ends_at_s = time.monotonic() + _ENDING_LIMIT_S
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > ends_at_s:
                raise ProcessFailed(f"process {process.pid} does not end after {_ENDING_LIMIT_S:g} s")
            time.sleep(_LOOK_S)
    except psutil.NoSuchProcess:
        pass
    except psutil.Error as error:
        raise ProcessFailed(f"can't end process {process.pid}: {error}") from error


def _name(words: Sequence[str]) -> str | None:
    """The name of the machine that a command line runs, where it is one of ours."""
    if len(words) > 2 and words[1] == "-name" and words[2].startswith(f"{_PREFIX} "):
        return words[2]
    return None


def _has_wrapper(process: psutil.Process) -> bool:
    """Whether it still is the child of who started it, and not of who takes in orphans.

    A wrapper has its QEMU in its own process group. It need not hold a lock, as in a test.
    """
    parent = process.parent()
    if parent is None or parent.pid == _INIT:
        return False
    return not hasattr(os, "getpgid") or os.getpgid(parent.pid) == os.getpgid(process.pid)
