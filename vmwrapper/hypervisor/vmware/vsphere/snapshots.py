"""The snapshots of one machine, in the tree that the server keeps of them."""

import json
import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vmwrapper.errors import SnapshotFailed, SnapshotUnusable
from vmwrapper.hypervisor.interface import Snapshot
from vmwrapper.hypervisor.saved_state import check_made_by, described
from vmwrapper.hypervisor.vmware.vsphere.connection import Connection
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.guest import Handle
from vmwrapper.hypervisor.vmware.vsphere.inventory import walk
from vmwrapper.hypervisor.vmware.vsphere.made import OFF, power_state
from vmwrapper.hypervisor.vmware.vsphere.vim_task import suppress_gone, vim_task

log = logging.getLogger(__name__)

SNAPSHOT_LIMIT_S = 900.0
_PREFIX = "vmwrapper "
_WITHOUT_CHILDREN = (False, True)  # and its disks are merged
_DESCRIPTION = "of a BOINC job, by vmwrapper, which removes it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One snapshot, as it is described to a later episode."""

    number: int
    name: str
    """In the tree."""
    made_by: Mapping[str, str]
    """What a machine must have in common with the one that it was taken of, by what that is called."""

    def snapshot(self) -> Snapshot:
        return described(self.number, self)


def saved(snapshot: Snapshot) -> Saved:
    """What a description says. Raises SnapshotUnusable for what makes no sense."""
    try:
        one = Saved(number=snapshot.number, **json.loads(snapshot.description))
        whole = isinstance(one.name, str) and one.name.startswith(_PREFIX) and type(one.made_by) is dict
    except (ValueError, TypeError, RecursionError) as error:
        raise SnapshotUnusable("its description makes no sense") from error
    if not whole:
        raise SnapshotUnusable("its description makes no sense")
    return one


class Snapshots:
    """What there is of them."""

    def __init__(
        self, connection: Connection, handle: Handle, *, made_by: Mapping[str, str], earlier: Sequence[Snapshot]
    ) -> None:
        """`made_by` as in `Saved`; `earlier` ones that make no sense are left out."""
        self._connection = connection
        self._handle = handle
        self._made_by = made_by
        self._saved: dict[int, Saved] = {}
        for snapshot in earlier:
            with suppress(SnapshotUnusable):
                self._saved[snapshot.number] = saved(snapshot)
        self._next_number = 1 + max((snapshot.number for snapshot in earlier), default=0)

    def all(self) -> list[Snapshot]:
        """Newest first."""
        return [self._saved[number].snapshot() for number in sorted(self._saved, reverse=True)]

    def forget(self) -> None:
        """There are none, since their machine is not to be had any more."""
        self._saved = {}

    async def take(self) -> None:
        """Take one of a machine that is on or suspended, and that goes on so. Raises SnapshotFailed."""
        number = self._next_number
        name = f"{_PREFIX}{number} {secrets.token_hex(8)}"
        machine = self._handle.machine
        try:
            await self._remove_unknown()
            words = (name, _DESCRIPTION, True, False)  # with memory, without asking the guest
            await vim_task(
                self._connection, machine, "CreateSnapshot", *words, machine=machine, limit_s=SNAPSHOT_LIMIT_S
            )
            one = Saved(number=number, name=name, made_by=self._made_by)
            try:
                await self._in_tree(one)
            except SnapshotUnusable as unusable:
                await self._remove_unknown()
                raise SnapshotFailed(str(unusable)) from unusable
        except VsphereFailed as failed:
            raise SnapshotFailed(str(failed)) from failed
        self._next_number += 1
        self._saved[number] = one

    async def verify(self, number: int) -> None:
        """See `Machine.verify_snapshot`: that the server still has it. Only the server itself could read it back."""
        try:
            await self._in_tree(self._saved[number])
        except VsphereFailed as failed:
            if failed.fault is Fault.GONE:
                raise SnapshotUnusable(str(failed)) from failed
            log.debug("The snapshot can't be looked for just now: %s", failed)

    async def _in_tree(self, one: Saved) -> Any:
        found = next((node for node in await self._tree() if node.name == one.name), None)
        if found is None:
            raise SnapshotUnusable("the vSphere server does not have it any more")
        if found.state == OFF:
            raise SnapshotUnusable("the vSphere server has kept no memory with it")
        return found

    async def _tree(self) -> list[Any]:
        roots = await self._connection.property(self._handle.machine, "snapshot.rootSnapshotList")
        return list(walk(roots or ()))

    async def keep(self, numbers: Collection[int]) -> None:
        """See `Machine.keep_snapshots`. What can't be removed now is removed the next time, or with the machine."""
        self._saved = {number: one for number, one in self._saved.items() if number in numbers}
        try:
            await self._remove_unknown()
        except VsphereFailed as failed:
            log.debug("Snapshots are not removed yet: %s", failed)

    async def _remove_unknown(self) -> None:
        """Remove those that are not kept, or that were being taken when somebody cut us off, but no stranger's."""
        known, machine = {one.name for one in self._saved.values()}, self._handle.machine
        for node in reversed(await self._tree()):
            if node.name.startswith(_PREFIX) and node.name not in known:
                words = (node.snapshot, "Remove", *_WITHOUT_CHILDREN)
                with suppress_gone():
                    await vim_task(self._connection, *words, machine=machine, limit_s=SNAPSHOT_LIMIT_S)

    async def restore(self, snapshot: Snapshot) -> None:
        """Have a machine as it was then: on, or suspended. Raises SnapshotUnusable, VsphereFailed."""
        one = self._saved.get(snapshot.number)
        if one is None or one != saved(snapshot):
            raise SnapshotUnusable("there is no such snapshot")
        check_made_by(one.made_by, self._made_by)
        machine = self._handle.machine
        try:
            node = await self._in_tree(one)
            for suppressed in (True, False):  # what has memory is suspended then, by servers that can
                words = (node.snapshot, "Revert", None, suppressed)
                await vim_task(self._connection, *words, machine=machine, limit_s=SNAPSHOT_LIMIT_S)
                if await power_state(self._connection, machine) != OFF:
                    return
        except VsphereFailed as failed:
            if failed.fault.passes or failed.fault in (Fault.NO_SPACE, Fault.NO_RESOURCES, Fault.FORBIDDEN):
                raise  # it is not the snapshot's
            raise SnapshotUnusable(str(failed)) from failed
        raise SnapshotUnusable("the machine is off after it")
