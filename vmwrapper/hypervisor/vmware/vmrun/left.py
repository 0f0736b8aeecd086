"""What still runs of machines of ours: those whose wrapper was killed, and whose slot nobody ran again.

VMware lists no other machines, and all else of one is in its slot's folder. Both vmrun's list and the list of processes
are looked at, since either may know of one that the other does not.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from vmwrapper.errors import ProcessFailed, TemporaryFailure
from vmwrapper.hostile import one_line
from vmwrapper.hypervisor.interface import Leftover
from vmwrapper.hypervisor.vmware.vmrun.machine import end_processes
from vmwrapper.hypervisor.vmware.vmrun.place import slot_of
from vmwrapper.hypervisor.vmware.vmrun.running import running, running_files
from vmwrapper.hypervisor.vmware.vmrun.vmrun import Vmrun

log = logging.getLogger(__name__)

_LIST_LIMIT_S = 20.0
_STOP_LIMIT_S = 10.0


async def found(vmruns: Iterable[Vmrun]) -> Sequence[Leftover]:
    """See `Hypervisor.leftovers`. `vmruns` has one for each product that may be there."""
    files: dict[Path, Vmrun | None] = dict.fromkeys(await asyncio.to_thread(running_files))
    for vmrun in vmruns:
        try:
            files |= dict.fromkeys(listed(await vmrun("list", limit_s=_LIST_LIMIT_S)), vmrun)
        except TemporaryFailure as error:
            log.debug("No list of VMware's machines: %s", error)
    return [
        Leftover(
            what=f"VMware's machine of {one_line(str(slot))}, which runs",
            slot=slot,
            files=vmx.parent.parent,
            remove=partial(remove, vmrun, vmx),
        )
        for vmx, vmrun in files.items()
        if (slot := slot_of(vmx))
    ]


def listed(said: str) -> list[Path]:
    """The .vmx files in vmrun's list of the machines that run."""
    head, *lines = said.splitlines() or [""]
    return [Path(line) for line in lines if line.endswith(".vmx")] if head.startswith("Total running VMs:") else []


async def remove(vmrun: Vmrun | None, vmx: Path) -> None:
    """Have nothing run the machine. Raises ProcessFailed where that can't be had."""
    if vmrun:
        try:
            await vmrun("stop", vmx, "hard", limit_s=_STOP_LIMIT_S)
        except ProcessFailed as error:
            log.debug("VMware does not stop a machine, and so its process is ended: %s", error)
    await asyncio.to_thread(end_processes, vmx)
    if await asyncio.to_thread(running, vmx):
        raise ProcessFailed(f"VMware's process of {one_line(str(vmx))} can't be ended: restart this computer")
