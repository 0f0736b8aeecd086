"""The snapshots of one machine: VMware keeps a tree of them in files of the machine's folder."""

import asyncio
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vmwrapper.digest import digest_of
from vmwrapper.durable import sync
from vmwrapper.errors import MachineExited, SnapshotFailed, SnapshotUnusable
from vmwrapper.hypervisor.interface import Snapshot
from vmwrapper.hypervisor.saved_state import DIGEST, check_made_by, check_state, described, fits
from vmwrapper.hypervisor.vmware.vmrun.faults import Fault
from vmwrapper.hypervisor.vmware.vmrun.place import Place
from vmwrapper.hypervisor.vmware.vmrun.vmrun import Vmrun, VmrunFailed

log = logging.getLogger(__name__)

SNAPSHOT_LIMIT_S = 600.0
_PREFIX = "vmwrapper-"
_STATE_SUFFIXES = (".vmsn", ".vmem")
_STATE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,120}\.(?:vmsn|vmem)")
_MOST_STATES = 4
_NOT_ITS_FAULT = {Fault.BUSY, Fault.NO_SPACE, Fault.NO_MEMORY, Fault.NO_MODULES, Fault.NO_LICENSE, Fault.IN_USE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One snapshot, as it is described to a later episode."""

    number: int
    states: Mapping[str, str]
    """Digests of the files that have the guest's memory and devices, by their names in the machine's folder."""
    made_by: Mapping[str, str]
    """What a machine must have in common with the one that it was taken of, by what that is called."""

    @property
    def name(self) -> str:
        return f"{_PREFIX}{self.number}"

    def snapshot(self) -> Snapshot:
        return described(self.number, self)


def saved(snapshot: Snapshot) -> Saved:
    """What a description says. Raises SnapshotUnusable for what makes no sense."""
    try:
        one = Saved(number=snapshot.number, **json.loads(snapshot.description))
    except (ValueError, TypeError, RecursionError) as error:
        raise SnapshotUnusable("its description makes no sense") from error
    whole = (
        type(one.states) is dict
        and 0 < len(one.states) <= _MOST_STATES
        and all(fits(name, _STATE_NAME) and fits(digest, DIGEST) for name, digest in one.states.items())
        and type(one.made_by) is dict
    )
    if not whole:
        raise SnapshotUnusable("its description makes no sense")
    return one


class Snapshots:
    """What there is of them."""

    def __init__(self, vmrun: Vmrun, place: Place, *, made_by: Mapping[str, str], earlier: Sequence[Snapshot]) -> None:
        """`made_by` as in `Saved`; `earlier` ones that make no sense are left out."""
        self._vmrun = vmrun
        self._place = place
        self._made_by = made_by
        self._saved: dict[int, Saved] = {}
        for snapshot in earlier:
            with suppress(SnapshotUnusable):
                self._saved[snapshot.number] = saved(snapshot)
        self._may_be_more = bool(self._saved)
        """Than we know of: some whose taking or deleting was cut off."""
        self._next_number = 1 + max((snapshot.number for snapshot in earlier), default=0)

    def all(self) -> list[Snapshot]:
        """Newest first."""
        return [self._saved[number].snapshot() for number in sorted(self._saved, reverse=True)]

    def forget(self) -> None:
        """There are none, since their machine is not to be had any more."""
        self._saved = {}
        self._may_be_more = False

    async def take(self) -> None:
        """Take one of a machine that runs, and that goes on so. Raises SnapshotFailed, ProcessFailed."""
        await self._delete_unknown()
        number = self._next_number
        self._may_be_more = True
        before = self._states()
        try:
            await self._told("snapshot", f"{_PREFIX}{number}")
        except VmrunFailed as failed:
            raise SnapshotFailed(str(failed)) from failed
        self._next_number += 1
        try:
            new = {name: await digest_of(self._place.folder / name) for name in sorted(self._states() - before)}
            await asyncio.to_thread(self._sync)
        except OSError as error:
            raise SnapshotFailed(f"can't read the snapshot's files: {error.strerror}") from error
        one = Saved(number=number, states=new, made_by=self._made_by)
        if not any(name.endswith(_STATE_SUFFIXES[0]) for name in new) or not all(map(_STATE_NAME.fullmatch, new)):
            raise SnapshotFailed(f"VMware took a snapshot, and its files are not to be found: {sorted(new)}")
        self._saved[number] = one
        self._may_be_more = False

    async def _told(self, verb: str, *words: str, but: Fault | None = None) -> str:
        """What vmrun says to that; nothing where it fails so."""
        try:
            return await self._vmrun(verb, self._place.vmx, *words, limit_s=SNAPSHOT_LIMIT_S)
        except VmrunFailed as failed:
            if failed.fault is but:
                return ""
            raise

    def _states(self) -> set[str]:
        return {path.name for path in self._place.folder.iterdir() if path.suffix in _STATE_SUFFIXES}

    def _sync(self) -> None:
        """Bring all to the disk that VMware goes back by."""
        for path in self._place.folder.iterdir():
            if path.suffix in (*_STATE_SUFFIXES, ".vmx", ".vmsd", ".vmdk", ".nvram"):
                sync(path)
        for folder in (self._place.folder, self._place.folder.parent):
            sync(folder)

    async def verify(self, number: int) -> None:
        """See `Machine.verify_snapshot`."""
        for name, digest in self._saved[number].states.items():
            await check_state(self._place.folder, name, digest)

    async def keep(self, numbers: Collection[int]) -> None:
        """See `Machine.keep_snapshots`. What can't be deleted now is later."""
        for number in sorted((number for number in self._saved if number not in numbers), reverse=True):
            del self._saved[number]
            self._may_be_more = True
        await self._delete_unknown()

    async def _delete_unknown(self) -> None:
        """Delete those that are not wanted, or were being taken when somebody cut us off; their disks are merged."""
        if not self._may_be_more:
            return
        known = {one.name for one in self._saved.values()}
        said = await self._told("listSnapshots")
        unknown = [name for name in snapshot_names(said) if name.startswith(_PREFIX) and name not in known]
        left = False
        for name in reversed(unknown):
            try:
                await self._told("deleteSnapshot", name, but=Fault.NO_SNAPSHOT)
            except VmrunFailed as failed:
                log.debug("A snapshot is not deleted yet: %s", failed)
                left = True
        if unknown:
            with suppress(OSError):
                await asyncio.to_thread(self._sync)
        self._may_be_more = left

    async def restore(self, snapshot: Snapshot) -> None:
        """Have a machine that is off begin as it was then. Raises SnapshotUnusable, MachineExited."""
        one = self._saved.get(snapshot.number)
        if one is None or one != saved(snapshot):
            raise SnapshotUnusable("there is no such snapshot")
        check_made_by(one.made_by, self._made_by)
        await self.verify(one.number)
        try:
            await self._vmrun("revertToSnapshot", self._place.vmx, one.name)
        except VmrunFailed as failed:
            if failed.fault in _NOT_ITS_FAULT:
                raise MachineExited(str(failed)) from failed
            raise SnapshotUnusable(str(failed)) from failed


def snapshot_names(said: str) -> list[str]:
    """Those in vmrun's list, oldest first."""
    head, *names = said.splitlines() or [""]
    return [name.strip() for name in names if name.strip()] if head.startswith("Total snapshots:") else []
