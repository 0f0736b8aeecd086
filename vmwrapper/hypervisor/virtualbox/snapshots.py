"""The snapshots of one machine: VirtualBox keeps them in a tree, and its files of them in the machine's folder."""

import asyncio
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vmwrapper.digest import digest_of
from vmwrapper.durable import sync
from vmwrapper.errors import MachineExited, SnapshotFailed, SnapshotUnusable
from vmwrapper.hypervisor.interface import Snapshot
from vmwrapper.hypervisor.saved_state import DIGEST, check_made_by, check_state, described, fits
from vmwrapper.hypervisor.virtualbox import spare
from vmwrapper.hypervisor.virtualbox.faults import Fault
from vmwrapper.hypervisor.virtualbox.place import Place
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage, VirtualBoxFailed, facts

log = logging.getLogger(__name__)

SNAPSHOT_LIMIT_S = 600.0
_TAKEN = re.compile(r"Snapshot taken\. UUID: ([0-9a-f-]{36})")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_STATE_NAME = re.compile(r"Snapshots/[0-9TZ.-]{1,40}\.sav")


@dataclass(frozen=True, slots=True)
class Taken:
    """One that VirtualBox has just taken."""

    number: int
    uuid: str
    state: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One snapshot, as it is described to a later episode."""

    number: int
    uuid: str
    state_file: str
    """In the machine's folder."""
    state_bytes: int
    state_digest: str
    """As `digest_of` makes it."""
    made_by: Mapping[str, str]
    """What a machine must have in common with the one that it was taken of, by what that is called."""

    def snapshot(self) -> Snapshot:
        return described(self.number, self)


def saved(snapshot: Snapshot) -> Saved:
    """What a description says. Raises SnapshotUnusable for what makes no sense."""
    try:
        found = json.loads(snapshot.description)
        one = Saved(number=snapshot.number, **found)
        whole = (
            fits(one.uuid, _UUID)
            and fits(one.state_file, _STATE_NAME)
            and fits(one.state_digest, DIGEST)
            and type(one.state_bytes) is int
            and type(one.made_by) is dict
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise SnapshotUnusable("its description makes no sense") from error
    if not whole:
        raise SnapshotUnusable("its description makes no sense")
    return one


class Snapshots:
    """What there is of them."""

    def __init__(
        self, manage: VBoxManage, place: Place, *, made_by: Mapping[str, str], earlier: Sequence[Snapshot]
    ) -> None:
        """`made_by` as in `Saved`; `earlier` ones that make no sense are left out."""
        self._manage = manage
        self._place = place
        self._made_by = made_by
        self._saved: dict[int, Saved] = {}
        for snapshot in earlier:
            with suppress(SnapshotUnusable):
                self._saved[snapshot.number] = saved(snapshot)
        self._deleted: list[str] = []
        """UUIDs of those that VirtualBox could not delete yet."""
        self._may_be_more = bool(self._saved)
        """Than we know of: some whose taking was cut off."""
        self._next_number = 1 + max((snapshot.number for snapshot in earlier), default=0)

    def all(self) -> list[Snapshot]:
        """Newest first."""
        return [self._saved[number].snapshot() for number in sorted(self._saved, reverse=True)]

    def forget(self) -> None:
        """There are none, since their machine is not to be had any more."""
        self._saved = {}
        self._deleted = []

    async def take(self) -> Taken:
        """Take one of a machine that runs or stands still, and that goes on so. Raises SnapshotFailed, ProcessFailed.

        VirtualBox makes it run on while it saves most of the memory, and stand still for the rest. It counts once it
        is secured.
        """
        number = self._next_number
        self._may_be_more = True
        states = set(self._states())
        words = "snapshot", self._place.uuid, "take", str(number)
        try:
            said = await self._told(*words, "--live", but=Fault.WRONG_STATE) or await self._told(*words)
        except VirtualBoxFailed as failed:
            raise SnapshotFailed(str(failed)) from failed
        self._next_number += 1
        found = _TAKEN.search(said)
        new = [state for state in self._states() if state not in states]
        if not found or len(new) != 1:
            raise SnapshotFailed(f"VirtualBox took a snapshot, and it is not to be found: {said!r}")
        return Taken(number, found[1], *new)

    async def secure(self, taken: Taken) -> None:
        """Have it on the host's disk. Raises SnapshotFailed."""
        state = taken.state
        try:
            digest = await digest_of(state)
            await asyncio.to_thread(self._sync)
            size = state.stat().st_size
        except OSError as error:
            raise SnapshotFailed(str(error)) from error
        self._saved[taken.number] = Saved(
            number=taken.number,
            uuid=taken.uuid,
            state_file=str(PurePosixPath("Snapshots", state.name)),
            state_bytes=size,
            state_digest=digest,
            made_by=self._made_by,
        )
        self._may_be_more = False
        await asyncio.to_thread(spare.keep_settings, self._place)

    async def _told(self, *words: str, but: Fault | None = None) -> str:
        """What VirtualBox says to that; nothing where it fails so."""
        try:
            return await self._manage(*words, limit_s=SNAPSHOT_LIMIT_S)
        except VirtualBoxFailed as failed:
            if failed.fault is but:
                return ""
            raise

    def _states(self) -> list[Path]:
        return list((self._place.folder / "Snapshots").glob("*.sav"))

    def _sync(self) -> None:
        """Bring all to the disk that VirtualBox goes back by."""
        for path in [*self._place.folder.glob("*.v*"), *(self._place.folder / "Snapshots").iterdir()]:
            sync(path)
        for folder in (self._place.folder / "Snapshots", self._place.folder, self._place.folder.parent):
            sync(folder)

    async def verify(self, number: int) -> None:
        """See `Machine.verify_snapshot`."""
        one = self._saved[number]
        await check_state(self._place.folder, one.state_file, one.state_digest)

    async def keep(self, numbers: Collection[int]) -> None:
        """See `Machine.keep_snapshots`. One that others depend on is deleted later."""
        await self.delete_unknown()
        others = sorted((number for number in self._saved if number not in numbers), reverse=True)
        waiting = [*(self._saved.pop(number).uuid for number in others), *self._deleted]
        self._deleted = []
        for uuid in waiting:
            await self._delete(uuid)
        if waiting:
            await asyncio.to_thread(spare.keep_settings, self._place)

    async def _delete(self, uuid: str) -> None:
        try:
            with spare.disks_kept(self._place):
                await self._told("snapshot", self._place.uuid, "delete", uuid, but=Fault.NOT_FOUND)
                await asyncio.to_thread(self._sync)
        except (VirtualBoxFailed, OSError) as failed:
            log.debug("A snapshot is not deleted yet: %s", failed)
            self._deleted.append(uuid)

    async def delete_unknown(self) -> None:
        """Delete those that were taken, or were being taken, when somebody cut us off. To be called before `take`."""
        if not self._may_be_more:
            return
        known = {*(one.uuid for one in self._saved.values()), *self._deleted}
        said = await self._told("snapshot", self._place.uuid, "list", "--machinereadable", but=Fault.WRONG_STATE)
        uuids = [value for name, value in facts(said).items() if name.startswith("SnapshotUUID")]
        for uuid in reversed(uuids):
            if uuid not in known:
                await self._delete(uuid)
        self._may_be_more = False

    async def restore(self, snapshot: Snapshot) -> None:
        """Have a machine that is off begin as it was then. Raises SnapshotUnusable, MachineExited."""
        one = self._saved.get(snapshot.number)
        if one is None or one != saved(snapshot):
            raise SnapshotUnusable("there is no such snapshot")
        check_made_by(one.made_by, self._made_by)
        await self.verify(one.number)
        try:
            await self.delete_unknown()
            await self._manage("snapshot", self._place.uuid, "restore", one.uuid)
        except VirtualBoxFailed as failed:
            if failed.fault.passes or failed.fault is Fault.NO_SPACE:  # it is not the snapshot's
                raise MachineExited(str(failed)) from failed
            raise SnapshotUnusable(str(failed)) from failed
