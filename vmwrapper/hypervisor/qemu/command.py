"""The command line of one QEMU process.

Everything that QEMU works on reaches it as an open descriptor: a slot's path may be longer than a Unix socket's name,
and a sandboxed QEMU need not open anything.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmwrapper.hypervisor.interface import SCRATCH_SERIAL, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu.accelerator import Accelerator
from vmwrapper.hypervisor.qemu.base_image import BaseImage
from vmwrapper.hypervisor.qemu.files import MachineFiles
from vmwrapper.hypervisor.qemu.layers import Disks, Layer, file_node
from vmwrapper.hypervisor.qemu.window import WINDOW_SERIAL

MONITOR = "monitor"
CONSOLE = "console"
AGENT_PORT = "org.qemu.guest_agent.0"
DATA_PORT = "org.vmwrapper.data"
SOCKETS = (MONITOR, CONSOLE, AGENT_PORT, DATA_PORT)

ROOT = "root"
SCRATCH = "scratch"
_SERIALS = {ROOT: "vmwrapper-root", SCRATCH: SCRATCH_SERIAL}

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_WITHOUT_STALE_CODE = (8, 1)
"""The first version whose emulator never executes code that another processor has replaced: see docs/adr/011."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """The programs to run, and how."""

    system: Path
    version: tuple[int, int]
    """Major and minor."""
    img: Path
    accelerator: Accelerator
    sandbox: bool
    """It was built with seccomp."""


def name_option(identity: MachineIdentity) -> str:
    """The value of -name: by it an orphan is recognized. QEMU writes a comma within a value twice."""
    return "guest=" + str(identity).replace(",", ",,")


def command(  # noqa: PLR0913  (each of another kind)
    qemu: Qemu,
    spec: MachineSpec,
    image: BaseImage,
    files: MachineFiles,
    disks: Disks,
    *,
    sockets: Mapping[str, int],
    waits: bool,
) -> list[str]:
    """The argument list; `sockets` has the descriptor of each of SOCKETS.

    One that waits boots nothing: it is to be told what state it has. Source: QEMU's qemu-options.hx.
    """
    return [
        *(str(qemu.system), "-name", name_option(spec.identity)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *(("-sandbox", _SANDBOX) if qemu.sandbox else ()),
        # What ends the guest leaves it standing, so that the story can say why it ended.
        *("-action", "panic=pause,reboot=shutdown,shutdown=pause"),
        *(("-incoming", "defer", "-S") if waits else ()),
        *_hardware(qemu, spec),
        *(argument for name, fd in sockets.items() for argument in _socket(name, fd)),
        *_boot(image, files),
        *_disks(image, files, disks),
    ]


def _hardware(qemu: Qemu, spec: MachineSpec) -> list[str]:
    return [
        *("-machine", "q35", "-accel", _accel(qemu, spec), "-cpu", qemu.accelerator.cpu_model),
        *("-m", f"{spec.memory_mib}M", "-smp", str(spec.cpus)),
        *("-device", "pvpanic-pci", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        # Linux takes the new number of a machine that was reverted for a reason to seed its random numbers anew.
        *("-device", "vmgenid,guid=auto"),
        # The memory that the guest frees is given back, and so is not in its snapshots.
        *("-device", "virtio-balloon-pci,free-page-reporting=on"),
    ]


def _accel(qemu: Qemu, spec: MachineSpec) -> str:
    """Older emulators let a guest of several processors hang, once in some fifty boots, unless they take turns."""
    if qemu.accelerator is Accelerator.TCG and spec.cpus > 1 and qemu.version < _WITHOUT_STALE_CODE:
        return f"{qemu.accelerator},thread=single"
    return qemu.accelerator


def hardware_digest(qemu: Qemu, spec: MachineSpec, disks: Disks) -> str:
    """Of all that a guest's saved state depends on."""
    devices = [*_hardware(qemu, spec), *SOCKETS, *disks.stacks]
    return hashlib.sha256(json.dumps(devices).encode()).hexdigest()[:16]


def _socket(name: str, fd: int) -> Iterator[str]:
    yield from ("-chardev", f"socket,id={name},fd={fd}")
    if name == MONITOR:
        yield from ("-mon", f"chardev={name},mode=control")
    elif name == CONSOLE:
        yield from ("-serial", f"chardev:{name}")
    else:
        yield from ("-device", f"virtserialport,chardev={name},name={name}")


def _boot(image: BaseImage, files: MachineFiles) -> Iterator[str]:
    if image.bundle is not None and files.kernel is not None and files.initramfs is not None:
        yield from ("-kernel", f"/dev/fd/{files.kernel.fileno()}")
        yield from ("-initrd", f"/dev/fd/{files.initramfs.fileno()}")
        yield from ("-append", image.bundle.command_line)


def _disks(image: BaseImage, files: MachineFiles, disks: Disks) -> Iterator[str]:
    if image.disk and files.base_disk:
        yield from _fdset(files.base_disk)
        base = image.disk.node(_fdset_name(files.base_disk))
        yield from ("-blockdev", json.dumps(base | {"node-name": disks.base(ROOT)}))
    for disk, stack in disks.stacks.items():
        yield from _stack(stack, disks.base(disk))
        yield from ("-device", f"virtio-blk-pci,drive={stack[-1].node},serial={_SERIALS[disk]}")
    # The last of all, since a guest may know its disks by their order.
    yield from _fdset(files.window)
    window = {
        "driver": "raw",
        "discard": "unmap",
        "cache": {"no-flush": True},
        "file": file_node(_fdset_name(files.window)),
    }
    yield from ("-blockdev", json.dumps(window | {"node-name": "window"}))
    yield from ("-device", f"virtio-blk-pci,drive=window,serial={WINDOW_SERIAL}")


def _stack(stack: Sequence[Layer], base: str | None) -> Iterator[str]:
    """Each layer is a node that QEMU flushes by itself whenever the guest is stopped."""
    below = base
    for layer in stack:
        yield from _fdset(layer.file)
        yield from ("-blockdev", json.dumps(layer.blockdev(below, is_lowest=layer is stack[0])))
        below = layer.node


def _fdset(file: BinaryIO) -> Iterator[str]:
    yield from ("-add-fd", f"fd={file.fileno()},set={file.fileno()}")


def _fdset_name(file: BinaryIO) -> str:
    return f"/dev/fdset/{file.fileno()}"
