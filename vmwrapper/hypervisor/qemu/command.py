"""The command line of one QEMU process.

Everything that QEMU works on reaches it as an open descriptor: a slot's path may be longer than a Unix socket's name,
and a sandboxed QEMU need not open anything.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vmwrapper.hypervisor.interface import SCRATCH_SERIAL, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu.accelerator import Accelerator
from vmwrapper.hypervisor.qemu.base_image import BaseImage
from vmwrapper.hypervisor.qemu.files import MachineFiles
from vmwrapper.hypervisor.qemu.window import WINDOW_SERIAL

MONITOR = "monitor"
CONSOLE = "console"
AGENT_PORT = "org.qemu.guest_agent.0"
DATA_PORT = "org.vmwrapper.data"
SOCKETS = (MONITOR, CONSOLE, AGENT_PORT, DATA_PORT)

_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """The programs to run, and how."""

    system: Path
    img: Path
    accelerator: Accelerator
    sandbox: bool
    """It was built with seccomp."""


def name_option(identity: MachineIdentity) -> str:
    """The value of -name: by it an orphan is recognized. QEMU writes a comma within a value twice."""
    return "guest=" + str(identity).replace(",", ",,")


def command(
    qemu: Qemu, spec: MachineSpec, image: BaseImage, files: MachineFiles, sockets: Mapping[str, int]
) -> list[str]:
    """The argument list; `sockets` has the descriptor of each of SOCKETS. Source: QEMU's qemu-options.hx."""
    return [
        *(str(qemu.system), "-name", name_option(spec.identity)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"q35,accel={qemu.accelerator}", "-cpu", qemu.accelerator.cpu_model),
        *("-m", f"{spec.memory_mib}M", "-smp", str(spec.cpus)),
        *(("-sandbox", _SANDBOX) if qemu.sandbox else ()),
        # What ends the guest leaves it standing, so that the story can say why it ended.
        *("-action", "panic=pause,reboot=shutdown,shutdown=pause", "-device", "pvpanic-pci"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *(argument for name, fd in sockets.items() for argument in _socket(name, fd)),
        *_boot(image, files),
        *_disks(image, files),
    ]


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


def _disks(image: BaseImage, files: MachineFiles) -> Iterator[str]:
    if image.disk and files.base_disk and files.overlay:
        base = image.disk.node(_fdset_name(files.base_disk))
        yield from _fdset(files.base_disk)
        yield from _fdset(files.overlay)
        yield from _virtio_disk("root", _qcow2(files.overlay) | {"backing": base}, serial="vmwrapper-root")
    if files.scratch:
        yield from _fdset(files.scratch)
        yield from _virtio_disk("scratch", _qcow2(files.scratch), serial=SCRATCH_SERIAL)
    # The last of all, since a guest may know its disks by their order.
    yield from _fdset(files.window)
    yield from _virtio_disk("window", _raw(files.window), serial=WINDOW_SERIAL)


def _virtio_disk(name: str, node: dict[str, Any], *, serial: str) -> Iterator[str]:
    yield from ("-blockdev", json.dumps({"node-name": name, "discard": "unmap"} | node))
    yield from ("-device", f"virtio-blk-pci,drive={name},serial={serial}")


def _fdset(file: BinaryIO) -> Iterator[str]:
    yield from ("-add-fd", f"fd={file.fileno()},set={file.fileno()}")


def _fdset_name(file: BinaryIO) -> str:
    return f"/dev/fdset/{file.fileno()}"


def _qcow2(file: BinaryIO) -> dict[str, Any]:
    return {"driver": "qcow2", "file": {"driver": "file", "filename": _fdset_name(file)}}


def _raw(file: BinaryIO) -> dict[str, Any]:
    return {"driver": "raw", "file": {"driver": "file", "filename": _fdset_name(file)}}
