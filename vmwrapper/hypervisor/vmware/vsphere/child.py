"""A machine on a host without vCenter, which can't clone: a new one, whose disks are children of the base machine's.

Such a host is said to delete the parents of a machine's disks with it. So it is never told to: it is to forget the
machine, and to delete a folder that has nothing of the base's.

Source: the vSphere Web Services API reference, VirtualDiskFlatVer2BackingInfo.parent, UnregisterVM,
DeleteDatastoreFile_Task.
"""

import re
from collections.abc import Iterator
from typing import Any

from pyVmomi import vim

from vmwrapper.errors import JobError
from vmwrapper.hypervisor.vmware.vsphere.base import Base
from vmwrapper.hypervisor.vmware.vsphere.connection import Connection
from vmwrapper.hypervisor.vmware.vsphere.datastore_file import delete
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.inventory import Target, datacenter
from vmwrapper.hypervisor.vmware.vsphere.place import PREFIX
from vmwrapper.hypervisor.vmware.vsphere.vim_task import suppress_gone, vim_task

HOST = "HostAgent"  # the API of an ESX host by itself

_DEVICE = vim.vm.device
_BUSES = (_DEVICE.VirtualSCSIController, _DEVICE.VirtualSATAController, _DEVICE.VirtualNVMEController)
"""Controllers that a machine doesn't have by itself."""
_FOLDER = re.compile(rf"\[[^]]+\] {PREFIX}[^/]+")
CREATE_LIMIT_S = 300.0
_UNREGISTER_LIMIT_S = 60.0


async def create_child(connection: Connection, config: Any, base: Base, target: Target, uuid: str) -> Any:
    """A machine as asked for, named by its UUID. Raises JobError for disks that can have no children, VsphereFailed."""
    name = f"{PREFIX}{uuid}"
    _complete(config, base, target, name)
    await _free(connection, f"{config.files.vmPathName} {name}", name)
    words = (config, target.pool, None)
    return await vim_task(connection, target.folder, "CreateVm", *words, limit_s=CREATE_LIMIT_S)


async def _free(connection: Connection, folder: str, name: str) -> None:
    """Delete the folder of a machine that the host was told to forget, just before its wrapper was killed."""
    centre = await datacenter(connection)
    index = connection.content.searchIndex
    if await connection.call(index, "FindByDatastorePath", centre, f"{folder}/{name}.vmx") is None:
        try:
            await delete(connection, folder, centre)
        except VsphereFailed as failed:
            if failed.fault is not Fault.UNUSABLE_FILE:  # of which the server tells again when it makes the machine
                raise


async def remove_child(connection: Connection, machine: Any) -> None:
    """On return one that is off is gone, with all of its files. Raises VsphereFailed."""
    centre, file = await datacenter(connection), ""
    with suppress_gone():
        file = str(await connection.property(machine, "config.files.vmPathName"))
    if not file:
        return
    folder = file.rpartition("/")[0]
    if not _FOLDER.fullmatch(folder):
        raise VsphereFailed(f"the machine of {file} has no folder of its own: remove it by hand", Fault.OTHER)
    with suppress_gone():
        await vim_task(connection, machine, "Unregister", limit_s=_UNREGISTER_LIMIT_S)
    await delete(connection, folder, centre)


def _complete(config: Any, base: Base, target: Target, name: str) -> None:
    disks = [one for one in base.config.hardware.device if isinstance(one, _DEVICE.VirtualDisk)]
    if not disks:
        raise JobError(f"the machine {base.config.name} has no disk")
    config.name = name
    config.guestId = base.config.guestId
    config.version = base.config.version
    config.firmware = base.config.firmware
    backing: Any = disks[0].backing
    store = target.datastore_name or str(backing.fileName).partition("]")[0].removeprefix("[")
    config.files = vim.vm.FileInfo(vmPathName=f"[{store}]")
    ours = [change for change in config.deviceChange if change.operation == "add"]  # there is nothing to be removed
    config.deviceChange = [*_controllers(base), *_children(disks, base, f"[{store}]"), *ours]


def _controllers(base: Base) -> Iterator[Any]:
    for one in base.config.hardware.device:
        if isinstance(one, _BUSES):
            again = type(one)(key=one.key, busNumber=one.busNumber)
            if isinstance(one, _DEVICE.VirtualSCSIController):
                again.sharedBus = one.sharedBus
            yield _added(again)


def _children(disks: list[Any], base: Base, store: str) -> Iterator[Any]:
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
            backing=kind(fileName=store, diskMode="persistent", thinProvisioned=True, parent=parent),
        )
        edit = _added(child)
        edit.fileOperation = "create"
        yield edit


def _added(device: Any) -> Any:
    return _DEVICE.VirtualDeviceSpec(operation="add", device=device)
