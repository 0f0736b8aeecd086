"""The snapshots of one machine: taken while it runs, kept, and deleted again.

In which order what is written, and why that is safe at any moment, is in docs/checkpoints.md.
"""

import asyncio
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from qemu.qmp import QMPClient

from vmwrapper.concurrency import beside, ungrouped
from vmwrapper.digest import digest_from_disk, digest_of
from vmwrapper.durable import sync
from vmwrapper.errors import ProcessFailed, SnapshotFailed, SnapshotUnusable
from vmwrapper.hypervisor.interface import MIB, Snapshot, Standing
from vmwrapper.hypervisor.qemu import migration
from vmwrapper.hypervisor.qemu.layers import Disks, Layer, discard
from vmwrapper.hypervisor.qemu.merging import Merging, attach, detach
from vmwrapper.hypervisor.qemu.saved import Saved, saved

_SIZE_LOOK_S = 0.1
_SYNC_S = 0.05
_CLEAN_UP_LIMIT_S = 10.0


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
        self._on_record = {file for one in self._saved.values() for file in one.files}
        """Files of those that the story has been told of: it may have written no other down."""
        self._has_lost_writes = False
        self.saving = asyncio.Lock()
        """Held while a guest's memory is saved: QEMU may refuse then to let it go on."""
        self.next_number = 1 + max((snapshot.number for snapshot in earlier), default=0)

    def all(self) -> list[Snapshot]:
        """Newest first."""
        return [self._saved[number].snapshot() for number in sorted(self._saved, reverse=True)]

    def sweep(self) -> None:
        """Remove all files that no snapshot needs from the directory."""
        self._remove_all_but(self._on_record | {file for one in self._saved.values() for file in one.files})

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
        if self._has_lost_writes:  # the host's kernel says so only once
            raise SnapshotFailed("the host's disk has failed under the machine's disks")
        try:
            await merging.end()
        finally:
            self._forget_layers(merging.gone)
        await asyncio.to_thread(self._remove_unneeded)
        number = self.next_number
        state = self._directory / f"state-{number}"
        try:
            for stack in self._disks.stacks.values():
                await asyncio.to_thread(sync, stack[0].path)  # in advance: it is flushed while the guest stands
            above = await self._disks.make(number + 1)
            try:
                for layer in above.values():
                    await attach(monitor, layer)
                with state.open("xb") as file:
                    near = asyncio.Event()
                    guards = _watch_size(file.fileno(), most_bytes), _bring_to_disk(state, near)
                    async with self.saving, beside(*guards):

                        async def at_rest() -> None:
                            _check_size(file.fileno(), most_bytes)
                            await self._freeze(monitor, above)

                        moments = migration.Moments(standing=standing, near=near.set, at_rest=at_rest)
                        await migration.save(monitor, file, moments)
                    _check_size(file.fileno(), most_bytes)
            finally:
                if self.next_number == number:
                    await _take_back(monitor, above)
            done = await self._secured(number, state)
        except BaseException as error:
            with suppress(OSError):
                state.unlink(missing_ok=True)
            if isinstance(error, SnapshotFailed):
                await self._begin_merge(merging)
            if isinstance(error, OSError | ProcessFailed) and not isinstance(error, TimeoutError):  # which is QEMU's
                raise SnapshotFailed(str(error)) from error
            raise
        self._saved[number] = done

    async def _freeze(self, monitor: QMPClient, above: Mapping[str, Layer]) -> None:
        """Put a layer on each disk's stack, on all at once. A cancellation waits until QEMU and we agree on that."""
        pairs = [(self._disks.stacks[disk][-1], layer) for disk, layer in above.items()]
        changes = [
            {"type": "blockdev-snapshot", "data": {"node": below.node, "overlay": layer.node}} for below, layer in pairs
        ]

        async def freeze() -> None:
            if changes:
                await monitor.execute("transaction", {"actions": changes})
            self._disks.put_on(above)
            self.next_number += 1

        freezing = asyncio.create_task(freeze())
        try:
            await asyncio.shield(freezing)
        except asyncio.CancelledError:
            await asyncio.wait([freezing], timeout=_CLEAN_UP_LIMIT_S)
            raise

    async def _secured(self, number: int, state: Path) -> Saved:
        """Have it on the disk."""
        layers = {disk: names[:-1] for disk, names in self._disks.names().items()}
        below = [layer.path for layer in self._disks.all_layers() if layer.path.name in _names(layers)]
        with ungrouped():
            async with asyncio.TaskGroup() as both:
                both.create_task(self._sync(state, below))
                written = both.create_task(digest_of(state))
        return Saved(
            number=number,
            state_bytes=(await asyncio.to_thread(state.stat)).st_size,
            state_digest=written.result(),
            layers=layers,
            layer_bytes={path.name: path.stat().st_size for path in below},
            made_by=self._made_by,
        )

    async def _sync(self, state: Path, layers: Sequence[Path]) -> None:
        try:
            for layer in layers:
                await asyncio.to_thread(sync, layer)
        except OSError:
            self._has_lost_writes = True
            raise
        for path in (state, self._directory):
            await asyncio.to_thread(sync, path)

    async def verify(self, number: int) -> None:
        """See `Machine.verify_snapshot`."""
        one = self._saved[number]
        state = self._directory / one.state_file
        try:
            found = await digest_from_disk(state)
        except OSError as error:
            raise SnapshotUnusable(f"its file {one.state_file} can't be read: {error.strerror}") from error
        if found != one.state_digest:
            raise SnapshotUnusable(f"the disk gives back other bytes of its file {one.state_file} than were written")

    async def keep(self, numbers: Collection[int], merging: Merging | None) -> None:
        """See `Machine.keep_snapshots`. May raise QMPError, too."""
        self._saved = {number: one for number, one in self._saved.items() if number in numbers}
        self._on_record = {file for one in self._saved.values() for file in one.files}
        await asyncio.to_thread(self._remove_unneeded)
        if merging:
            await self._begin_merge(merging)

    def _remove_unneeded(self) -> None:
        ours = {layer.path.name for layer in self._disks.all_layers()}
        needed = {file for one in self._saved.values() for file in one.files}
        prefixes = ("state-", *(f"{disk}-" for disk in self._disks.stacks))
        self._remove_all_but(self._on_record | needed | ours, prefixes)

    async def _begin_merge(self, merging: Merging) -> None:
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
    while True:
        _check_size(fd, most_bytes)
        await asyncio.sleep(_SIZE_LOOK_S)


def _check_size(fd: int, most_bytes: int) -> None:
    if os.fstat(fd).st_size > most_bytes:
        raise SnapshotFailed(f"the guest's memory takes more than the {most_bytes // MIB} MiB that there are for it")


async def _bring_to_disk(file: Path, enough: asyncio.Event) -> None:
    """Have the host write while QEMU does, so that its cache is not full when the guest waits for QEMU."""
    while not enough.is_set():
        await asyncio.sleep(_SYNC_S)
        await asyncio.to_thread(sync, file)


async def _take_back(monitor: QMPClient, above: Mapping[str, Layer]) -> None:
    """Forget layers that came to nothing."""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLEAN_UP_LIMIT_S):
                for layer in above.values():
                    await detach(monitor, layer)
    finally:
        discard(above)
