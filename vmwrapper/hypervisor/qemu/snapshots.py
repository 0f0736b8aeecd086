"""The snapshots of one machine: taken while it runs, kept, and deleted again.

In which order what is written, and why that is safe at any moment, is in docs/checkpoints.md.
"""

import asyncio
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from qemu.qmp import QMPClient, QMPError

from vmwrapper.concurrency import beside, ungrouped
from vmwrapper.durable import sync
from vmwrapper.errors import ProcessFailed, SnapshotFailed, SnapshotUnusable
from vmwrapper.hypervisor.interface import MIB, Snapshot, Standing
from vmwrapper.hypervisor.qemu import migration
from vmwrapper.hypervisor.qemu.layers import Disks, Layer, discard
from vmwrapper.hypervisor.qemu.merging import Merging, attach, detach
from vmwrapper.hypervisor.qemu.saved import Saved, digest, saved

_SIZE_LOOK_S = 0.1
_SYNC_S = 0.05


class Snapshots:
    """What there is of them, and the number that the next one will have."""

    def __init__(self, directory: Path, disks: Disks, made_by: Mapping[str, str], earlier: Sequence[Snapshot]) -> None:
        """`made_by` as in `Saved`; `earlier` ones that make no sense are left out."""
        self._directory = directory
        self._disks = disks
        self._made_by = made_by
        self._saved: dict[int, Saved] = {}
        for snapshot in earlier:
            with suppress(SnapshotUnusable):
                self._saved[snapshot.number] = saved(snapshot)
        self.saving = asyncio.Lock()
        """Held while a guest's memory is saved: QEMU may refuse then to let it go on."""
        self.next_number = 1 + max((snapshot.number for snapshot in earlier), default=0)

    def all(self) -> list[Snapshot]:
        """Newest first."""
        return [self._saved[number].snapshot() for number in sorted(self._saved, reverse=True)]

    def sweep(self) -> None:
        """Remove all files that no snapshot needs from the directory."""
        self._remove_all_but({file for one in self._saved.values() for file in one.files})

    def _remove_all_but(self, names: Collection[str], prefixes: tuple[str, ...] = ("",)) -> None:
        with suppress(OSError):  # whoever sweeps next tries again
            for entry in list(os.scandir(self._directory)):
                if entry.name not in names and entry.name.startswith(prefixes) and not entry.is_dir():
                    Path(entry).unlink(missing_ok=True)

    async def begin(self) -> None:
        """Let each disk have a layer, the next number's."""
        self._disks.put_on(await self._disks.make(self.next_number))

    async def take(self, monitor: QMPClient, merging: Merging, standing: Standing, most_bytes: int) -> None:
        """See `Machine.take_snapshot`. May raise QMPError, too."""
        try:
            await merging.end()
        finally:
            self._forget_layers(merging.gone)
        number = self.next_number
        state = self._directory / f"state-{number}"
        try:
            above = await self._disks.make(number + 1)
            try:
                for layer in above.values():
                    await attach(monitor, layer)
                with state.open("xb") as file:
                    guards = _watch_size(file.fileno(), most_bytes), _bring_to_disk(file.fileno())
                    async with self.saving, beside(*guards):
                        at_rest = partial(self._freeze, monitor, above)
                        await migration.save(monitor, file, standing=standing, at_rest=at_rest)
            finally:
                if self.next_number == number:
                    await _take_back(monitor, above)
            done = await self._secured(number, state)
        except BaseException as error:
            with suppress(OSError):
                state.unlink(missing_ok=True)
            if isinstance(error, OSError | ProcessFailed):
                raise SnapshotFailed(str(error)) from error
            raise
        self._saved[number] = done

    async def _freeze(self, monitor: QMPClient, above: Mapping[str, Layer]) -> None:
        """Put a layer on each disk's stack, on all at once."""
        pairs = [(self._disks.stacks[disk][-1], layer) for disk, layer in above.items()]
        changes = [
            {"type": "blockdev-snapshot", "data": {"node": below.node, "overlay": layer.node}} for below, layer in pairs
        ]
        if changes:
            await monitor.execute("transaction", {"actions": changes})
        self._disks.put_on(above)
        self.next_number += 1

    async def _secured(self, number: int, state: Path) -> Saved:
        """Have it on the disk."""
        layers = {disk: names[:-1] for disk, names in self._disks.names().items()}
        below = [layer.path for layer in self._disks.all_layers() if layer.path.name in _names(layers)]
        with ungrouped():
            async with asyncio.TaskGroup() as both:
                both.create_task(self._sync([state, *below, self._directory]))
                written = both.create_task(digest_of(state))
        return Saved(
            number=number,
            state_bytes=(await asyncio.to_thread(state.stat)).st_size,
            state_digest=written.result(),
            layers=layers,
            made_by=self._made_by,
        )

    async def _sync(self, paths: Sequence[Path]) -> None:
        for path in paths:
            await asyncio.to_thread(sync, path)

    async def verify(self, number: int) -> None:
        """See `Machine.verify_snapshot`."""
        one = self._saved[number]
        state = self._directory / one.state_file
        try:
            await asyncio.to_thread(_forget_cached, state)
            found = await digest_of(state)
        except OSError as error:
            raise SnapshotUnusable(f"its file {one.state_file} can't be read: {error.strerror}") from error
        if found != one.state_digest:
            raise SnapshotUnusable(f"the disk gives back other bytes of its file {one.state_file} than were written")

    async def keep(self, numbers: Collection[int], merging: Merging | None) -> None:
        """See `Machine.keep_snapshots`. May raise QMPError, too."""
        self._saved = {number: one for number, one in self._saved.items() if number in numbers}
        needed = {file for one in self._saved.values() for file in one.files}
        ours = {layer.path.name for layer in self._disks.all_layers()}
        self._remove_all_but(needed | ours, prefixes=("state-", *(f"{disk}-" for disk in self._disks.stacks)))
        if merging:
            await merging.begin(frozenset().union(*(one.frozen for one in self._saved.values())))

    def _forget_layers(self, gone: Collection[str]) -> None:
        self._saved = {number: one.without(gone) for number, one in self._saved.items()}

    async def reopen(self, snapshot: Snapshot) -> Saved:
        """Have the disks as they were, each with a new layer on top. Raises SnapshotUnusable."""
        one = saved(snapshot)
        one.check(self._directory, self._made_by, self._disks.stacks)
        try:
            self._disks.reopen(one.layers)
        except OSError as error:
            raise SnapshotUnusable(f"a file of it can't be opened: {error}") from error
        await self.begin()
        return one


def _names(layers: Mapping[str, Sequence[str]]) -> set[str]:
    return {name for names in layers.values() for name in names}


async def _watch_size(fd: int, most_bytes: int) -> NoReturn:
    while os.fstat(fd).st_size <= most_bytes:  # noqa: ASYNC110  (QEMU writes it)
        await asyncio.sleep(_SIZE_LOOK_S)
    raise SnapshotFailed(f"the guest's memory takes more than the {most_bytes // MIB} MiB that there are for it")


async def _bring_to_disk(fd: int) -> NoReturn:
    """Have the host write while QEMU does: so there is less to sync in the end, and no guest waits for a full cache."""
    while True:
        await asyncio.sleep(_SYNC_S)
        await asyncio.to_thread(os.fsync, fd)


async def _take_back(monitor: QMPClient, above: Mapping[str, Layer]) -> None:
    """Forget layers that came to nothing."""
    for layer in above.values():
        with suppress(QMPError):  # it may not have been attached
            await detach(monitor, layer)
    discard(above)


def _forget_cached(file: Path) -> None:
    """Have the next reader get what is on the disk, where the host can do that; and leave its memory to others."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


async def digest_of(file: Path) -> str:
    """Of a file's bytes, in a thread, which stops when we are cancelled."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(digest, file, stop)
    finally:
        stop.set()
