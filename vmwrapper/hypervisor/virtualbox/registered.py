"""What VirtualBox knows of a machine and its disks: made for an episode, and taken back at its end.

In between only files are left, in the machine's directory, which its slot takes with it: so nothing stands in the
volunteer's VirtualBox that does not run, also when a slot is deleted behind our back.
"""

import asyncio
import logging
import os
import re
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from vmwrapper.errors import ProcessFailed
from vmwrapper.hypervisor.virtualbox.faults import Fault
from vmwrapper.hypervisor.virtualbox.place import Place
from vmwrapper.hypervisor.virtualbox.settings import CD, CONTROLLER, CONTROLLER_OPTIONS, ROOT, SCRATCH, Hardware
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage, VirtualBoxFailed
from vmwrapper.turns import turn

log = logging.getLogger(__name__)

_LOCATION = re.compile(r"^Location: +(.+)$", re.MULTILINE)
_ENDING_LIMIT_S = 5.0
_IDENTITIES_AT, _IDENTITY_BYTES = 0x188, 16  # the disk's, one that changes with its content, and its parent's


async def create(manage: VBoxManage, hardware: Hardware, place: Place) -> None:
    """Have the machine, powered off, with an overlay of its base image. Raises VirtualBoxFailed."""
    spec = hardware.spec
    root, scratch = place.folder / "root.vdi", place.folder / "scratch.vdi"
    parts: list[Coroutine[None, None, object]] = [_create_machine(manage, hardware, place)]
    if not hardware.is_cd:
        parts.append(_create_overlay(manage, spec.image, root))
    if spec.scratch_mib:
        parts.append(manage("createmedium", "disk", "--filename", scratch, "--size", spec.scratch_mib))
    # When one fails, the others are not cancelled: VirtualBox would go on with them, in the way of the next try.
    for result in await asyncio.gather(*parts, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
    attach = "storageattach", place.uuid, "--storagectl", CONTROLLER
    if hardware.is_cd:
        await manage(*attach, *CD, "--type", "dvddrive", "--medium", spec.image)
    else:
        await manage(*attach, *ROOT, "--type", "hdd", "--medium", root)
    if spec.scratch_mib:
        await manage(*attach, *SCRATCH, "--type", "hdd", "--medium", scratch)
        await manage("setextradata", place.uuid, *hardware.scratch_serial())


async def _create_machine(manage: VBoxManage, hardware: Hardware, place: Place) -> None:
    name, folder = place.folder.name, place.folder.parent
    words = "--name", name, "--uuid", place.uuid, "--basefolder", folder, "--ostype", "Linux_64", "--register"
    await manage("createvm", *words)
    await manage("modifyvm", place.uuid, *hardware.options(place.console))
    await manage("storagectl", place.uuid, "--name", CONTROLLER, *CONTROLLER_OPTIONS)


async def _create_overlay(manage: VBoxManage, base: Path, overlay: Path) -> None:
    """An overlay on a base that seems unchanged, so that other jobs know it again.

    VirtualBox always opens a base for writing, and brings the header of one that another program made up to date, once.
    """
    words = "createmedium", "disk", "--filename", overlay, "--format", "VDI", "--diffparent", base
    async with turn(base.parent):
        with _times_kept(base):
            try:
                await manage(*words)
            except VirtualBoxFailed as failed:
                if failed.fault is not Fault.SAME_UUID:
                    raise
                log.warning("Another disk with the UUID of %s is registered in VirtualBox: it gets a new one", base)
                await manage("internalcommands", "sethduuid", base)
                await manage(*words)


@contextmanager
def _times_kept(file: Path) -> Iterator[None]:
    before = file.stat()
    try:
        yield
    finally:
        with suppress(OSError):  # who may not set them may not write it either
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


async def find(manage: VBoxManage, place: Place, base: Path) -> None:
    """Have the machine that an earlier episode has left with its snapshots. Raises VirtualBoxFailed."""
    if files := await asyncio.to_thread(_unlisted, place):
        async with turn(base.parent):
            with _times_kept(base):
                for file in (base, *files):
                    with suppress(ProcessFailed):
                        await manage("showmediuminfo", "disk", file)  # from then on VirtualBox knows it
    await manage("registervm", place.settings)


def _unlisted(place: Place) -> list[Path]:
    """Disks of which the machine's settings say nothing, parents before children.

    VirtualBox lists what is built on a base in the settings of that machine only which came first to the base.
    """
    try:
        settings = place.settings.read_text(encoding="utf-8", errors="replace")
        files = [*place.folder.glob("root.vdi"), *place.folder.glob("Snapshots/*.vdi")]
        kinship = {file: _kinship(file) for file in files if f'{file.name}"' not in settings}
    except OSError:
        return []
    ordered: list[Path] = []
    while waiting := [file for file in kinship if file not in ordered]:
        theirs = {kinship[file][0] for file in waiting}
        ordered += [file for file in waiting if kinship[file][1] not in theirs] or waiting
    return ordered


def _kinship(file: Path) -> tuple[bytes, bytes]:
    """A disk's identity, and that of the one it is built on. Source: VirtualBox's src/VBox/Storage/VDICore.h."""
    with file.open("rb") as opened:
        opened.seek(_IDENTITIES_AT)
        identities = opened.read(3 * _IDENTITY_BYTES)
    return identities[:_IDENTITY_BYTES], identities[2 * _IDENTITY_BYTES :]


async def remove(manage: VBoxManage, place: Place, base: Path | None) -> None:
    """Have VirtualBox know nothing of the machine and its disks, whose files stay. Nobody else's are touched.

    Raises ProcessFailed where that can't be had.
    """
    await asyncio.to_thread(end_process, place.uuid)
    try:
        await manage("unregistervm", place.uuid)
    except VirtualBoxFailed as failed:
        if failed.fault is not Fault.NOT_FOUND:
            raise
    await close_disks(manage, place.folder, base)


async def close_disks(manage: VBoxManage, folder: Path, base: Path | None) -> None:
    """Have VirtualBox know nothing of disks in the folder, nor of their base, but of those that are in use."""
    kinds = [("hdds", "disk"), ("dvds", "dvd")] if base and base.suffix == ".iso" else [("hdds", "disk")]
    for listed, kind in kinds:
        files = _LOCATION.findall(await manage("list", listed))
        ours = [file for file in files if Path(file).is_relative_to(folder)]
        for file in reversed(ours):
            with suppress(ProcessFailed):
                await manage("closemedium", kind, file)
        if base and str(base) in files:
            async with turn(base.parent):
                with suppress(ProcessFailed):  # where another job uses it
                    await manage("closemedium", kind, base)


def end_process(uuid: str) -> None:
    """End the process of a machine whose wrapper is gone."""
    for process in processes(uuid):
        with suppress(psutil.Error):
            log.warning("ending VirtualBox's process %d, left over from an earlier episode", process.pid)
            process.kill()
            process.wait(timeout=_ENDING_LIMIT_S)


def processes(uuid: str) -> Iterator[psutil.Process]:
    """Those that run the machine."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "--startvm" in words and uuid in words:
                yield process
