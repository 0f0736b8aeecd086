"""The machine of one task on the server, from its making or finding again to its removal."""

import hashlib
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from vmwrapper.concurrency import to_its_end
from vmwrapper.errors import TemporaryFailure
from vmwrapper.hypervisor.interface import MachineSpec, Snapshot
from vmwrapper.hypervisor.vmware.vsphere import made
from vmwrapper.hypervisor.vmware.vsphere.base import Base
from vmwrapper.hypervisor.vmware.vsphere.connection import Connection
from vmwrapper.hypervisor.vmware.vsphere.guest import Handle
from vmwrapper.hypervisor.vmware.vsphere.inventory import target_of
from vmwrapper.hypervisor.vmware.vsphere.place import place_of
from vmwrapper.hypervisor.vmware.vsphere.snapshots import Snapshots

log = logging.getLogger(__name__)

_CLONING_ENDS_WITHIN_S = 30.0


class Own:
    """See above."""

    def __init__(self, connection: Connection, base: Base, spec: MachineSpec, earlier: Sequence[Snapshot]) -> None:
        self._connection = connection
        self._base = base
        self._spec = spec
        self._place = place_of(spec.identity, connection.settings.owner)
        self.handle = Handle(None)
        made_by = _made_by(connection, base, spec)
        self.snapshots = Snapshots(connection, self.handle, made_by=made_by, earlier=earlier)

    async def have(self) -> None:
        """Have it, powered off: as an earlier episode has left it where that left snapshots, else made anew."""
        self.handle.machine = await made.existing(self._connection, self._place)
        if self.handle.machine is not None and self.snapshots.all():
            await made.power_off(self._connection, self.handle.machine, limit_s=made.REMOVE_LIMIT_S)
        else:
            await self.renew()

    async def renew(self) -> None:
        """Have it made anew, without snapshots."""
        self.snapshots.forget()
        old, self.handle.machine = self.handle.machine, None
        if old is not None:
            await made.remove(self._connection, old)
        target = await target_of(self._connection, self._base.machine)
        cloning = made.create(self._connection, self._base, target, self._spec, self._place)
        await to_its_end(self._keep(cloning), limit_s=_CLONING_ENDS_WITHIN_S)

    async def _keep(self, cloning: Coroutine[Any, Any, Any]) -> None:
        self.handle.machine = await cloning

    async def end(self) -> None:
        """Have nothing of it any more but, where there are snapshots, it itself, powered off.

        What can't be done is left to the next episode, or to `vmwrapper gc`.
        """
        try:
            if self.handle.machine is None:  # it was made, and nobody heard of it
                self.handle.machine = await made.existing(self._connection, self._place)
            if self.handle.machine is None:
                return
            if self.snapshots.all():
                await made.power_off(self._connection, self.handle.machine, limit_s=made.REMOVE_LIMIT_S)
                await self.snapshots.keep([one.number for one in self.snapshots.all()])
            else:
                await made.remove(self._connection, self.handle.machine)
        except TemporaryFailure as failed:
            log.warning("The machine may still run, which is left to the next job here, or `vmwrapper gc`: %s", failed)


def _made_by(connection: Connection, base: Base, spec: MachineSpec) -> Mapping[str, str]:
    hardware = f"{spec.memory_mib} {spec.cpus} {spec.scratch_mib}"
    return {
        "server": f"{connection.settings.host} {connection.about.instanceUuid}",
        "base machine": f"{base.config.instanceUuid} {base.snapshot._moId}",  # noqa: SLF001  (it has no other name)
        "virtual hardware": hashlib.sha256(hardware.encode()).hexdigest()[:16],
    }
