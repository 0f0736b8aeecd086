"""What the workunit allows a job, watched as the client watches it."""

import logging
import math
import os
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from vmwrapper.boinc.init_data import InitData
from vmwrapper.clock import RunningClock
from vmwrapper.errors import DiskLimitExceeded, MemoryLimitExceeded, TimeLimitExceeded
from vmwrapper.hypervisor.interface import MIB

log = logging.getLogger(__name__)

_HYPERVISOR_MIB = 128
"""What a machine takes beside its guest's memory, with the wrapper: about as much as was measured."""
_NICEST = 19
_NICENESS = {0: _NICEST, 1: 10, 2: 0, 3: -10, 4: -16, 5: -16}


def check_memory(memory_mib: int, bound_bytes: float) -> None:
    """Raise MemoryLimitExceeded for a machine of which the client would end the job. 0 is no bound."""
    if not bound_bytes:
        return
    bound_mib = bound_bytes / MIB
    if memory_mib > bound_mib:
        raise MemoryLimitExceeded(
            f"the job wants a machine of {memory_mib} MiB, and its workunit allows {bound_mib:.0f} MiB: "
            f"lower <memory_mb>, or raise rsc_memory_bound to at least {(memory_mib + _HYPERVISOR_MIB) * MIB}"
        )
    if memory_mib + _HYPERVISOR_MIB > bound_mib:
        log.warning(
            "A machine of %d MiB can come to need %d MiB; the client ends the job at the %.0f MiB of rsc_memory_bound",
            memory_mib,
            memory_mib + _HYPERVISOR_MIB,
            bound_mib,
        )


def niceness(client: InitData) -> int | None:
    """How nice machines must be to the volunteer's other programs; None where that is nobody's business.

    Source: BOINC's lib/util.cpp, process_priority_value. The client has made us as nice, but where we are a wrapper.
    """
    if client.no_priority_change or sys.platform == "win32":
        return None
    return _NICENESS.get(client.process_priority, _NICEST)


def cpu_cap_percent(client: InitData) -> int:
    """Of its processors' time, what a machine may use at most, where the client leaves that to us.

    Newer clients don't throttle apps of plan classes with `vbox`. Source: BOINC's client/app_control.cpp.
    """
    limit = client.global_preferences.cpu_usage_limit
    return max(1, min(round(limit), 100)) if limit and "vbox" in (client.plan_class or "") else 100


@asynccontextmanager
async def time_limit(title: str, limit_s: float | None, *, ran_s: float, clock: RunningClock) -> AsyncIterator[None]:
    """Raise TimeLimitExceeded in the block once a task has run for so long, `ran_s` of it before; None for no limit."""
    try:
        async with clock.timeout(limit_s - ran_s if limit_s else math.inf):
            yield
    except TimeoutError as error:
        raise TimeLimitExceeded(f"{title} ran for longer than its {limit_s:g} s") from error


FULL_DISK = 0.95
"""Of the bound: from then on checkpoints are deleted, before the client finds the job too large."""


def check_disk(used_bytes: int, bound_bytes: float) -> None:
    """Raise DiskLimitExceeded where the job's files are larger than that. 0 is no bound."""
    if bound_bytes and used_bytes > bound_bytes:
        raise DiskLimitExceeded(
            f"the job's files have {used_bytes / MIB:.0f} MiB, its workunit allows {bound_bytes / MIB:.0f} MiB: "
            "lower <disk_mb>, or raise rsc_disk_bound"
        )


def disk_use_bytes(slot: Path, outputs: Collection[Path]) -> int:
    """The apparent sizes of all that is in the slot, and of the outputs elsewhere.

    Source: BOINC's client/app.cpp, ACTIVE_TASK::current_disk_usage.
    """
    files = [Path(folder, name) for folder, _, names in os.walk(slot) for name in names]
    return sum(map(_size, {*files, *outputs}))


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0  # gone meanwhile
