"""The disks that a machine writes to: stacks of qcow2 layers, of which only the top one is written to.

A snapshot freezes a disk by having a new layer put on top. Layers below are merged again, so that stacks stay short:
see docs/checkpoints.md.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vmwrapper.concurrency import ungrouped
from vmwrapper.process import run

_QEMU_IMG_LIMIT_S = 30.0
BELOW = "below"
"""What a layer's own header calls the one below, which QEMU is told otherwise: so it is the same after each merge."""


def file_node(filename: str) -> dict[str, Any]:
    """A file of the host for QEMU's block layer, as part of a node above.

    QEMU need not flush it and forget what is cached of it after each snapshot, as it would after a migration.
    """
    return {"driver": "file", "filename": filename, "drop-cache": False}


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One file, open for QEMU to inherit."""

    path: Path
    file: BinaryIO

    @property
    def node(self) -> str:
        """The name of its node in QEMU's block layer."""
        return self.path.stem

    @property
    def fdset(self) -> int:
        """The number of the set through which QEMU gets its descriptor."""
        return self.file.fileno()

    def blockdev(self, backing: str | None, *, is_lowest: bool = False) -> dict[str, Any]:
        """The node, above another one. Source: BlockdevOptions in QEMU's qapi/block-core.json.

        What a guest wants flushed goes no further than to the host's kernel, but from the lowest layer: when the power
        goes, only frozen layers count, and these we bring to the disk ourselves. So a guest does not wait for the
        host's disk, neither when it wants to nor when it is stopped. The lowest layer is the one that is merged into.
        """
        return {
            "node-name": self.node,
            "driver": "qcow2",
            "discard": "unmap",
            "cache": {"no-flush": not is_lowest},
            "file": file_node(f"/dev/fdset/{self.fdset}"),
            "backing": backing,
        }


class Disks:
    """The stacks of one machine's disks, by the disks' names, each from its lowest layer on.

    They are qcow2 also at the bottom, since the BOINC client counts a file's apparent size.
    """

    def __init__(self, directory: Path, sizes: Mapping[str, int], *, bases: Collection[str], qemu_img: Path) -> None:
        """`sizes` is in bytes, with 0 for no such disk; those in `bases` lie above a node `base-NAME`."""
        self.stacks: dict[str, list[Layer]] = {name: [] for name, size in sizes.items() if size}
        self._directory = directory
        self._sizes = sizes
        self._bases = bases
        self._qemu_img = qemu_img

    @property
    def virtual_bytes(self) -> int:
        """What the guest sees of them all."""
        return sum(self._sizes.values())

    def used_bytes(self) -> int:
        """What they take of the host's disk."""
        return sum(layer.path.stat().st_size for layer in self.all_layers())

    def base(self, disk: str) -> str | None:
        """The node below all layers."""
        return f"base-{disk}" if disk in self._bases else None

    def all_layers(self) -> Iterator[Layer]:
        for stack in self.stacks.values():
            yield from stack

    async def make(self, number: int) -> Mapping[str, Layer]:
        """Make one more layer for each disk, to `put_on` later. Raises ProcessFailed.

        The job's clock may stand still: a last snapshot is taken of a guest that stands.
        """
        paths = {disk: self._directory / f"{disk}-{number}.qcow2" for disk in self.stacks}
        with ungrouped():
            async with asyncio.TaskGroup() as making:
                for disk, path in paths.items():
                    making.create_task(self._make(path, self._sizes[disk], is_lowest=not self.stacks[disk]))
        return {disk: _opened(path) for disk, path in paths.items()}

    async def _make(self, path: Path, size: int, *, is_lowest: bool) -> None:
        argv = [str(self._qemu_img), "create", "-q", "-f", "qcow2"]
        if not is_lowest:
            argv += ["-u", "-b", BELOW, "-F", "qcow2"]
        await run([*argv, path.name, str(size)], limit_s=_QEMU_IMG_LIMIT_S, directory=self._directory)

    def put_on(self, layers: Mapping[str, Layer]) -> None:
        for disk, layer in layers.items():
            self.stacks[disk].append(layer)

    def names(self) -> dict[str, list[str]]:
        """The layers' file names."""
        return {disk: [layer.path.name for layer in stack] for disk, stack in self.stacks.items()}

    def reopen(self, names: Mapping[str, Sequence[str]]) -> None:
        """Have these stacks instead of those that there are. Raises OSError, and then there are none."""
        self.close()
        for disk, files in names.items():
            for name in files:
                self.stacks[disk].append(_opened(self._directory / name))

    def close(self) -> None:
        """Have nothing open. The files stay."""
        for stack in self.stacks.values():
            for layer in stack:
                layer.file.close()
            stack.clear()


def discard(layers: Mapping[str, Layer]) -> None:
    """Remove layers that were made and are not needed."""
    for layer in layers.values():
        layer.file.close()
        with suppress(OSError):  # whoever sweeps the directory tries again
            layer.path.unlink(missing_ok=True)


def _opened(path: Path) -> Layer:
    return Layer(path, path.open("r+b"))
