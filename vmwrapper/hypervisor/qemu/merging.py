"""Merges layers of a running machine's disks in the background, so that the stacks stay short.

Layers are merged into the lowest one by QEMU's block-commit. Until that is done all are there, and the upper ones hide
what is written into the lowest: so a snapshot that needs them is good at any moment, if only the lowest one's tables
are. Therefore that one flushes. A top layer that stands for a snapshot is left alone: it is this disk as it was.
"""

import asyncio
import itertools
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from qemu.qmp import ExecuteError, QMPClient

from vmwrapper.hypervisor.interface import MIB
from vmwrapper.hypervisor.qemu.layers import BELOW, Disks, Layer

_GENTLE = 64 * MIB  # bytes a second
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class _Merge:
    disk: str
    base: Layer
    layers: Sequence[Layer]
    """Those that will be gone."""

    @property
    def job(self) -> str:
        return f"merge-{self.disk}"


def mergeable(stack: Sequence[Layer], frozen: Collection[str]) -> Sequence[Layer]:
    """The lowest layers that can become one, if there are several; the first of them remains.

    Neither the top layer, which is written to, nor those with the file names in `frozen`.
    """
    found = list(itertools.takewhile(lambda layer: layer.path.name not in frozen, stack[:-1]))
    return found if len(found) > 1 else []


class Merging:
    """What is being merged in one QEMU."""

    def __init__(self, monitor: QMPClient, disks: Disks) -> None:
        self._monitor = monitor
        self._disks = disks
        self._merges: list[_Merge] = []
        self.gone: set[str] = set()
        """The file names of layers that have been merged, and of which nobody but older descriptions knows."""

    async def begin(self, frozen: Collection[str]) -> None:
        """Merge what can be, unless that is going on, or the guest stands since its memory was saved. Raises QMPError.

        Then QEMU takes the disks for those of another one, which the memory went to.
        """
        if self._merges or await self._is_given_away():
            return
        for disk, stack in self._disks.stacks.items():
            if found := mergeable(stack, frozen):
                merge = _Merge(disk, found[0], found[1:])
                await self._monitor.execute(
                    "block-commit",
                    {
                        "job-id": merge.job,
                        "device": stack[-1].node,
                        "base-node": merge.base.node,
                        "top-node": found[-1].node,
                        "backing-file": BELOW,
                        "speed": _GENTLE,
                        "auto-dismiss": False,
                    },
                )
                self._merges.append(merge)

    async def end(self) -> None:
        """Wait for what is going on. Raises QMPError."""
        while self._merges:
            merge = self._merges[-1]
            with suppress(ExecuteError):  # it may be over
                await self._monitor.execute("block-job-set-speed", {"device": merge.job, "speed": 0})
            while (job := await self._status(merge))["status"] != "concluded":  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)  # seldom, so that a listener to the job's events is not worth it
            self._merges.pop()
            with ExitStack() as files:
                if "error" not in job:  # or else the next merge tries again
                    self._forget(merge, files)
                await self._monitor.execute("job-dismiss", {"id": merge.job})
                if "error" not in job:
                    for layer in reversed(merge.layers):  # each is still held by the one above
                        await detach(self._monitor, layer)

    def _forget(self, merge: _Merge, files: ExitStack) -> None:
        for layer in merge.layers:
            self._disks.stacks[merge.disk].remove(layer)
            self.gone.add(layer.path.name)
            files.enter_context(layer.file)

    async def _is_given_away(self) -> bool:
        said: Any = await self._monitor.execute("query-status")
        return bool(said["status"] == "postmigrate")

    async def _status(self, merge: _Merge) -> dict[str, Any]:
        jobs: Any = await self._monitor.execute("query-jobs")
        return next(job for job in jobs if job["id"] == merge.job)


async def attach(monitor: QMPClient, layer: Layer) -> None:
    """Let QEMU know a layer that will be put on top. Raises QMPError."""
    monitor.send_fd_scm(layer.file.fileno())
    await monitor.execute("add-fd", {"fdset-id": layer.fdset})
    await monitor.execute("blockdev-add", layer.blockdev(None))


async def detach(monitor: QMPClient, layer: Layer) -> None:
    """Let QEMU forget a layer that is in no stack any more, if it knows it. Raises QMPError where it doesn't answer."""
    with suppress(ExecuteError):
        await monitor.execute("blockdev-del", {"node-name": layer.node})
    with suppress(ExecuteError):
        await monitor.execute("remove-fd", {"fdset-id": layer.fdset})
