"""What VirtualBox knows of a machine and its disks: made for an episode, and taken back at its end.

In between only files are left, in the machine's directory, which its slot takes with it: so nothing stands in the
volunteer's VirtualBox that does not run, also when a slot is deleted behind our back.
"""

import asyncio
import logging
import os
import re
from collections.abc import Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import psutil

from vmwrapper.concurrency import to_thread_and_back
from vmwrapper.errors import HostDiskFailed, ProcessFailed
from vmwrapper.hostile import one_line
from vmwrapper.hypervisor.outputs import writing
from vmwrapper.hypervisor.virtualbox import disks, service, spare
from vmwrapper.hypervisor.virtualbox.faults import Fault
from vmwrapper.hypervisor.virtualbox.place import Place
from vmwrapper.hypervisor.virtualbox.settings import (
    ANSWERS,
    CD,
    CONTROLLER,
    CONTROLLER_OPTIONS,
    REQUESTS,
    ROOT,
    SCRATCH,
    SHARED,
    Hardware,
)
from vmwrapper.hypervisor.virtualbox.vboxmanage import STUCK, VBoxManage, VirtualBoxFailed
from vmwrapper.turns import turn

log = logging.getLogger(__name__)

_LOCATION = re.compile(r"^Location: +(.+)$", re.MULTILINE)
_ENDING_LIMIT_S = 5.0
_CLOSING_LIMIT_S = 30.0
_CALLS_LIMIT_S = 10.0
_TURN_LIMIT_S = 5.0
_PAUSE_S = 0.5


async def create(manage: VBoxManage, hardware: Hardware, place: Place) -> None:
    """Have the machine, powered off, with an overlay of its base image. Raises VirtualBoxFailed."""
    spec = hardware.spec
    name, folder = place.folder.name, place.folder.parent
    words = "--name", name, "--uuid", place.uuid, "--basefolder", folder, "--ostype", "Linux_64", "--register"
    # Alone: VirtualBox's service may crash, with all machines, when an overlay is made that one from before has.
    await manage("createvm", *words)
    root, scratch = place.folder / "root.vdi", place.folder / "scratch.vdi"
    parts: list[Coroutine[None, None, object]] = [_fit_out(manage, hardware, place)]
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
    share = "sharedfolder", "add", place.uuid
    for folder in (place.requests, place.answers):
        with writing(folder):
            folder.mkdir(mode=0o700)
    await manage(*share, "--name", REQUESTS, "--hostpath", place.requests, "--readonly")
    await manage(*share, "--name", ANSWERS, "--hostpath", place.answers)
    if spec.shared:  # its guest may make no links there, as is VirtualBox's default
        await manage("sharedfolder", "add", place.uuid, "--name", SHARED, "--hostpath", spec.shared, "--automount")
    if spec.scratch_mib:
        await manage(*attach, *SCRATCH, "--type", "hdd", "--medium", scratch)
        await manage("setextradata", place.uuid, *hardware.scratch_serial())


async def _fit_out(manage: VBoxManage, hardware: Hardware, place: Place) -> None:
    await manage("modifyvm", place.uuid, *hardware.options(place.console))
    await manage("storagectl", place.uuid, "--name", CONTROLLER, *CONTROLLER_OPTIONS)


async def _create_overlay(manage: VBoxManage, base: Path, overlay: Path) -> None:
    """An overlay on a base that seems unchanged, so that other jobs know it again.

    VirtualBox always opens a base for writing, and brings the header of one that another program made up to date, once;
    closing it touches it, too, now and then.
    """
    words = "createmedium", "disk", "--filename", overlay, "--format", "VDI", "--diffparent", base
    async with turn(base):
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
    try:
        before = file.stat()
    except OSError as error:
        raise HostDiskFailed(f"can't read {file}: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # who may not set them may not write it either
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _times_kept_if_there(file: Path) -> AbstractContextManager[None]:
    return _times_kept(file) if file.exists() else nullcontext()


async def find(manage: VBoxManage, hardware: Hardware, place: Place) -> None:
    """Have the machine that an earlier episode has left with its snapshots. Raises VirtualBoxFailed, HostDiskFailed."""
    base = hardware.spec.image
    await to_thread_and_back(disks.put_in_order, place, base, hardware.disk_format)
    async with turn(base):
        with _times_kept(base):
            await manage("registervm", place.settings)
    await to_thread_and_back(disks.sweep, place)
    await to_thread_and_back(spare.forget_disks, place)


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
    """Have VirtualBox know nothing of disks in the folder, nor of their base where nobody else uses it.

    For some seconds it may still be making or merging some, which must not come to a later machine. Raises
    ProcessFailed where it does not let go of them even then, also when its service was ended for that.
    """
    # VirtualBox's service crashes when a base is closed while an overlay is made on it.
    await asyncio.to_thread(_outlast_calls, folder)
    loop = asyncio.get_running_loop()
    service_was_ended = False
    ends_at_s = loop.time() + _CLOSING_LIMIT_S
    files = await _known(manage, "hdds")
    while ours := [file for file in files if Path(file).is_relative_to(folder)]:
        if all([await _closes(manage, "disk", file) for file in reversed(ours)]):  # children before their parents
            break
        if loop.time() > ends_at_s:
            if service_was_ended or not await to_thread_and_back(service.end_if_unneeded):
                raise ProcessFailed(
                    f"VirtualBox does not let go of {one_line(ours[-1])}, unless a machine uses it: {STUCK}"
                )
            service_was_ended = True
        await asyncio.sleep(_PAUSE_S)
        files = await _known(manage, "hdds")
    if base:
        kind = "disk"
        if str(base) not in files:
            kind, files = "dvd", await _known(manage, "dvds")
        if str(base) in files:
            with suppress(TimeoutError):  # another job begins with it
                async with asyncio.timeout(_TURN_LIMIT_S), turn(base):
                    with _times_kept_if_there(base):
                        await _closes(manage, kind, str(base))  # but where another job uses it


async def _known(manage: VBoxManage, kind: str) -> list[str]:
    return _LOCATION.findall(await manage("list", kind))


async def _closes(manage: VBoxManage, kind: str, file: str) -> bool:
    """Whether VirtualBox lets go of it."""
    try:
        await manage("closemedium", kind, file)
    except VirtualBoxFailed as failed:
        return failed.fault is Fault.NOT_FOUND
    return True


def end_process(uuid: str) -> None:
    """End the process of a machine whose wrapper is gone."""
    for process in processes(uuid):
        with suppress(psutil.Error):
            log.warning("ending VirtualBox's process %d, left over from an earlier episode", process.pid)
            process.kill()
            process.wait(timeout=_ENDING_LIMIT_S)


def _outlast_calls(folder: Path) -> None:
    """Wait for the calls about disks in the folder that a killed wrapper has left running."""
    psutil.wait_procs([*_calls(folder)], timeout=_CALLS_LIMIT_S)


def _calls(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith("VBoxManage") and any(str(folder) in word for word in process.cmdline()):
                yield process


def processes(uuid: str) -> Iterator[psutil.Process]:
    """Those that run the machine."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "--startvm" in words and uuid in words:
                yield process
