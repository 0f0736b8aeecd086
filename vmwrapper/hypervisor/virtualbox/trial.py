"""Whether VirtualBox runs machines on this host: found out by running one, without a guest.

Its kernel module, the processor's virtualization and other hypervisors that have it in use can each keep a machine from
starting; VirtualBox says which by a status code.
"""

import asyncio
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from vmwrapper.boinc.slot_lock import slot_lock
from vmwrapper.clock import RunningClock
from vmwrapper.errors import ProcessFailed
from vmwrapper.hypervisor.host import boot_id
from vmwrapper.hypervisor.remembered import identity, keep, recall
from vmwrapper.hypervisor.virtualbox.settings import INTERPRETED
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage, environment
from vmwrapper.hypervisor.virtualbox.vm_log import Sign, VmLog
from vmwrapper.process import child

START_LIMIT_S = 3.0
_NAME, _FOLDER = "vmwrapper trial ", "vmwrapper-trial-"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_END_LIMIT_S = 2.0
_LOOK_S = 0.02
_DRIVER = Path("/dev/vboxdrv")
_HELP = (
    # (status code, what a volunteer can do)
    (
        "VERR_SUP_DRIVERLESS|VERR_VM_DRIVER_(NOT_INSTALLED|NOT_ACCESSIBLE|LOAD_ERROR|OPEN_ERROR)",
        "its kernel module is not loaded: on Linux run `/sbin/vboxconfig` as root, else install VirtualBox again",
    ),
    (
        "VERR_VM_DRIVER_VERSION_MISMATCH",
        "its kernel module is of another version: restart this computer, or install VirtualBox again",
    ),
    (
        "VERR_VMX_IN_VMX_ROOT_MODE|VERR_SVM_IN_USE",
        "another hypervisor, such as KVM, uses the processor's virtualization: end its machines, or unload its module",
    ),
    (
        "VERR_(VMX_MSR_(ALL_)?VMX_DISABLED|SVM_DISABLED)",
        "the processor's virtualization is switched off: allow it in the firmware's set-up (BIOS, UEFI)",
    ),
    (
        "VERR_(VMX_NO_VMX|SVM_NO_SVM|UNSUPPORTED_CPU)",
        "the processor has no hardware virtualization",
    ),
    (
        "VERR_NEM_",
        'Hyper-V does not share the processor\'s virtualization: turn it off, or "Windows Hypervisor Platform" on',
    ),
)
_LASTING = "VERR_(SUP_DRIVERLESS|VM_DRIVER_|VMX_NO_VMX|SVM_NO_SVM|UNSUPPORTED_CPU|VMX_MSR_|SVM_DISABLED|NEM_)"
"""What stays so until the host is started or VirtualBox installed anew, or its driver comes."""
_VERSION = re.compile(r"^Version: +(\S+)", re.MULTILINE)
_CODE = re.compile(r"\bVERR_[A-Z0-9_]+")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether machines start here, and what a volunteer may want to know of that."""

    works: bool
    is_interpreted: bool
    """Only without hardware virtualization, some hundred times as slow."""
    reasons: tuple[str, ...]
    extension_pack: str = ""
    """Its version, where there is one."""


async def verdict(
    manage: VBoxManage, headless: Sequence[str], program: Path, clock: RunningClock, *, cache: Path
) -> Verdict:
    """What a machine's start says; remembered as long as neither VirtualBox nor the host was started anew.

    What may pass by itself, or when the volunteer does as we say, is not remembered. Raises ProcessFailed where
    VirtualBox makes no machine at all.
    """
    file = cache / "virtualbox.json"
    question = _question(headless, program)
    match recall(file, question) if question["boot_id"] else None:
        case [bool(works), bool(is_interpreted), [*reasons], str(pack)]:
            return Verdict(works, is_interpreted, tuple(map(str, reasons)), pack)
    complaint, found = await _tried(manage, headless, clock)
    if found.works and (complaint is None or re.search(_LASTING, complaint)):
        found = replace(found, extension_pack=await _extension_pack(manage))
        keep(file, question, [found.works, found.is_interpreted, list(found.reasons), found.extension_pack])
    return found


async def _extension_pack(manage: VBoxManage) -> str:
    """Its version; nothing where there is none, or nobody says so: none is needed."""
    with suppress(ProcessFailed):
        if found := _VERSION.search(await manage("list", "extpacks", limit_s=_END_LIMIT_S)):
            return found[1]
    return ""


def folder_of(settings: Path) -> Path | None:
    """The folder of the trial with this settings file, where that is one: it is locked as long as somebody tries."""
    name, folder = settings.parent.name, settings.parent.parent
    is_trial = name.startswith(_NAME) and _UUID.fullmatch(name, len(_NAME)) and folder.name.startswith(_FOLDER)
    return folder if is_trial else None


def _question(headless: Sequence[str], program: Path) -> dict[str, object]:
    return {"boot_id": boot_id(), "driver": _DRIVER.exists(), "headless": list(headless), **identity(program)}


async def _tried(manage: VBoxManage, headless: Sequence[str], clock: RunningClock) -> tuple[str | None, Verdict]:
    """What is said of hardware virtualization, and what follows from that."""
    complaint = await _start(manage, headless, clock)
    if complaint is None:
        return None, Verdict(works=True, is_interpreted=False, reasons=())
    reason = f"VirtualBox can't use hardware virtualization: {_help(complaint)}"
    if await _start(manage, headless, clock, *INTERPRETED) is None:
        return complaint, Verdict(works=True, is_interpreted=True, reasons=(reason,))
    reason = f"VirtualBox runs no machine here: {_help(complaint)}"
    return complaint, Verdict(works=False, is_interpreted=False, reasons=(reason,))


def _help(complaint: str) -> str:
    for code, sentence in _HELP:
        if re.search(code, complaint):
            return sentence
    found = _CODE.search(complaint)
    return f"it says {found[0]}" if found else complaint


async def _start(manage: VBoxManage, headless: Sequence[str], clock: RunningClock, *options: str) -> str | None:
    """Start a machine and end it again; why it didn't start, or None."""
    name = f"{_NAME}{uuid4()}"
    with (
        tempfile.TemporaryDirectory(prefix=_FOLDER, ignore_cleanup_errors=True) as folder,
        slot_lock(Path(folder)),  # so that none takes it for one that was left over
    ):
        try:
            await manage("createvm", "--name", name, "--basefolder", folder, "--ostype", "Linux_64", "--register")
            await manage("modifyvm", name, "--memory", 16, "--audio-driver", "none", "--nic1", "none", *options)
            return await _run(headless, name, VmLog(Path(folder, name, "Logs", "VBox.log")), clock)
        finally:
            with suppress(ProcessFailed):
                await manage("unregistervm", name, limit_s=_END_LIMIT_S)


async def _run(headless: Sequence[str], name: str, log: VmLog, clock: RunningClock) -> str | None:
    argv = [*headless, "--startvm", name, "--vrde", "off"]
    async with child(argv, environment=environment()) as process:
        with clock.followed_by(stop=process.stop, go=process.go):
            try:
                async with clock.timeout(START_LIMIT_S):
                    while all(entry.sign is not Sign.RUNS for entry in log.look()):
                        with suppress(TimeoutError):
                            async with asyncio.timeout(_LOOK_S):
                                await process.ended()
                                return process.last_words or "it said nothing"
            except TimeoutError:
                return f"a machine did not start within {START_LIMIT_S:g} s"
    return None
