"""The files of one machine: what it boots from, and the disks that it writes to."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import ungrouped
from vmwrapper.errors import HostDiskFailed
from vmwrapper.guest.bundle import Bundle, Section, extract
from vmwrapper.hypervisor.interface import MIB, MachineSpec
from vmwrapper.hypervisor.qemu.base_image import BaseImage
from vmwrapper.hypervisor.qemu.outputs import writing
from vmwrapper.hypervisor.qemu.window import WINDOW_BYTES
from vmwrapper.process import run

_QEMU_IMG_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFiles:
    """Open files, for QEMU to inherit; None for what the machine doesn't have."""

    kernel: BinaryIO | None
    initramfs: BinaryIO | None
    base_disk: BinaryIO | None
    """The base image, open for reading only."""
    overlay: BinaryIO | None
    scratch: BinaryIO | None
    window: BinaryIO
    """What large files cross through."""

    def descriptors(self) -> list[int]:
        """Of all that are there."""
        files = (self.kernel, self.initramfs, self.base_disk, self.overlay, self.scratch, self.window)
        return [file.fileno() for file in files if file]


@asynccontextmanager
async def machine_files(
    image: BaseImage, spec: MachineSpec, qemu_img: Path, clock: RunningClock
) -> AsyncIterator[MachineFiles]:
    """Make the files that a machine needs, side by side; those with a name are removed at the end.

    Kernel, initramfs and window have no name: they are gone with the last process that has them open. The disks are
    qcow2, since the BOINC client counts a file's apparent size.
    """
    bundle = image.bundle
    async with AsyncExitStack() as files:
        with ungrouped():
            async with asyncio.TaskGroup() as making:
                overlay = making.create_task(
                    _disk(files, qemu_img, spec.directory / "overlay.qcow2", image.virtual_size, clock)
                )
                scratch = making.create_task(
                    _disk(files, qemu_img, spec.directory / "scratch.qcow2", spec.scratch_mib * MIB, clock)
                )
                kernel = making.create_task(
                    _extracted(files, spec.directory, bundle, bundle.kernel if bundle else None)
                )
                initramfs = making.create_task(
                    _extracted(files, spec.directory, bundle, bundle.initramfs if bundle else None)
                )
        yield MachineFiles(
            kernel=kernel.result(),
            initramfs=initramfs.result(),
            base_disk=files.enter_context(image.path.open("rb")) if image.disk else None,
            overlay=overlay.result(),
            scratch=scratch.result(),
            window=_window(files, spec.directory),
        )


async def _disk(files: AsyncExitStack, qemu_img: Path, path: Path, size: int, clock: RunningClock) -> BinaryIO | None:
    if size == 0:
        return None
    files.callback(path.unlink, missing_ok=True)
    argv = [str(qemu_img), "create", "-q", "-f", "qcow2", path.name, str(size)]
    await run(argv, limit_s=_QEMU_IMG_LIMIT_S, clock=clock, directory=path.parent)
    return files.enter_context(path.open("r+b"))


def _window(files: AsyncExitStack, directory: Path) -> BinaryIO:
    with writing(f"a file in {directory}"):
        window = files.enter_context(tempfile.TemporaryFile(dir=directory))  # noqa: SIM115  (the stack closes it)
        window.truncate(WINDOW_BYTES)
    return window


async def _extracted(
    files: AsyncExitStack, directory: Path, bundle: Bundle | None, section: Section | None
) -> BinaryIO | None:
    if bundle is None or section is None:
        return None
    try:
        file = files.enter_context(tempfile.TemporaryFile(dir=directory))  # noqa: SIM115  (the stack closes it)
        await asyncio.to_thread(extract, bundle, section, file)
        file.flush()
    except OSError as error:
        raise HostDiskFailed(f"can't copy the guest's kernel into {directory}: {error.strerror}") from error
    return file
