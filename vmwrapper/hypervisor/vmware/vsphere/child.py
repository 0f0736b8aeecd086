"""A machine on a host without vCenter, which can't clone: a new one, whose disks are children of the base machine's.

Source: the vSphere Web Services API reference, VirtualDiskFlatVer2BackingInfo.parent.
"""

from collections.abc import Iterator
from typing import Any

from pyVmomi import vim

from vmwrapper.errors import JobError
from vmwrapper.hypervisor.vmware.vsphere.base import Base
from vmwrapper.hypervisor.vmware.vsphere.inventory import Target

_DEVICE = vim.vm.device
_BUSES = (_DEVICE.VirtualSCSIController, _DEVICE.VirtualSATAController, _DEVICE.VirtualNVMEController)
"""Controllers that a machine doesn't have by itself."""


def as_child(config: Any, base: Base, target: Target, name: str) -> None:
    """Complete what is asked of a machine. Raises JobError for disks that can have no children."""
    disks = [one for one in base.config.hardware.device if isinstance(one, _DEVICE.VirtualDisk)]
    if not disks:
        raise JobError(f"the machine {base.config.name} has no disk")
    config.name = name
    config.guestId = base.config.guestId
    config.version = base.config.version
    config.firmware = base.config.firmware
    config.files = vim.vm.FileInfo(vmPathName=_store(disks[0], target))
    ours = [change for change in config.deviceChange if change.operation == "add"]  # there is nothing to be removed
    config.deviceChange = [*_controllers(base), *_children(disks, base, target), *ours]


def _controllers(base: Base) -> Iterator[Any]:
    for one in base.config.hardware.device:
        if isinstance(one, _BUSES):
            again = type(one)(key=one.key, busNumber=one.busNumber)
            if isinstance(one, _DEVICE.VirtualSCSIController):
                again.sharedBus = one.sharedBus
            yield _added(again)


def _children(disks: list[Any], base: Base, target: Target) -> Iterator[Any]:
    kind = _DEVICE.VirtualDisk.FlatVer2BackingInfo
    for number, disk in enumerate(disks):
        if not isinstance(disk.backing, kind):
            raise JobError(f"the machine {base.config.name} has a disk of a kind that no other can be based on")
        parent = kind(fileName=disk.backing.fileName, diskMode="persistent")
        child = _DEVICE.VirtualDisk(
            key=-100 - number,
            controllerKey=disk.controllerKey,
            unitNumber=disk.unitNumber,
            capacityInKB=disk.capacityInKB,
            backing=kind(fileName=_store(disk, target), diskMode="persistent", thinProvisioned=True, parent=parent),
        )
        edit = _added(child)
        edit.fileOperation = "create"
        yield edit


def _store(disk: Any, target: Target) -> str:
    """The datastore for something new, as a path has it."""
    if target.datastore is not None:
        return f"[{target.datastore_name}]"
    return str(disk.backing.fileName).partition("]")[0] + "]"


def _added(device: Any) -> Any:
    return _DEVICE.VirtualDeviceSpec(operation="add", device=device)
