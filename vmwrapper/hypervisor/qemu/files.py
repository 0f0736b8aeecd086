"""The files of one machine beside the layers of its disks: what it boots from, and the window."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmwrapper.concurrency import ungrouped
from vmwrapper.errors import HostDiskFailed
from vmwrapper.guest.bundle import Bundle, Section, extract
from vmwrapper.hypervisor.interface import MachineSpec
from vmwrapper.hypervisor.outputs import writing
from vmwrapper.hypervisor.qemu.base_image import BaseImage
from vmwrapper.hypervisor.qemu.window import WINDOW_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFiles:
    """Open files, for QEMU to inherit; None for what the machine doesn't have."""

    kernel: BinaryIO | None
    initramfs: BinaryIO | None
    base_disk: BinaryIO | None
    """The base image, open for reading only."""
    window: BinaryIO
    """What large files cross through."""

    def descriptors(self) -> list[int]:
        """Of all that are there."""
        files = (self.kernel, self.initramfs, self.base_disk, self.window)
        return [file.fileno() for file in files if file]


@asynccontextmanager
async def machine_files(image: BaseImage, spec: MachineSpec) -> AsyncIterator[MachineFiles]:
    """Make the files that a machine needs.

    Those that are made have no name: they are gone with the last process that has them open.
    """
    bundle = image.bundle
    async with AsyncExitStack() as files:
        with ungrouped():
            async with asyncio.TaskGroup() as making:
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
            window=_window(files, spec.directory),
        )


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
