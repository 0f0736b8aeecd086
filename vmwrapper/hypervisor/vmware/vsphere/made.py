"""Makes machines, finds them again and removes them."""

from collections.abc import Sequence
from typing import Any

from pyVmomi import vim

from vmwrapper.errors import HostDiskFailed, JobError
from vmwrapper.hypervisor.interface import MachineSpec
from vmwrapper.hypervisor.vmware.vsphere.base import Base
from vmwrapper.hypervisor.vmware.vsphere.child import CREATE_LIMIT_S, HOST, create_child, remove_child
from vmwrapper.hypervisor.vmware.vsphere.connection import Connection
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.inventory import Target
from vmwrapper.hypervisor.vmware.vsphere.place import IDENTITY_KEY, Place, identity_of
from vmwrapper.hypervisor.vmware.vsphere.vim_task import suppress_gone, vim_task

REMOVE_LIMIT_S = 120.0
SCRATCH_UUID = "6000C295-766d-7772-6170-7065722d7363"
"""Of the scratch disk, by which the launcher finds it: VMware's disks have no serial numbers of other kinds."""
_KIB_PER_MIB = 1024
ON, OFF, SUSPENDED = "poweredOn", "poweredOff", "suspended"
_UNITS = tuple(unit for unit in range(16) if unit != 7)  # which is the controller's own


async def existing(connection: Connection, place: Place) -> Any:
    """The machine of this place, or None. Raises VsphereFailed where another's is there."""
    index = connection.content.searchIndex
    machine = await connection.call(index, "FindByUuid", None, place.uuid, True, True)  # noqa: FBT003
    if machine is None:
        return None
    extra_config = await connection.property(machine, "config.extraConfig")
    if identity_of(extra_config or (), connection.settings.owner) is None:
        raise VsphereFailed(f"a machine with the UUID {place.uuid} is there that is not ours", Fault.EXISTS)
    return machine


async def remove(connection: Connection, machine: Any) -> None:
    """On return it is gone, with all of its files. Raises VsphereFailed."""
    await power_off(connection, machine, limit_s=REMOVE_LIMIT_S)
    if connection.about.apiType == HOST:
        await remove_child(connection, machine)
        return
    with suppress_gone():
        await vim_task(connection, machine, "Destroy", machine=machine, limit_s=REMOVE_LIMIT_S)


async def power_off(connection: Connection, machine: Any, *, limit_s: float) -> None:
    """On return it is off, or gone. Raises VsphereFailed."""
    try:
        await vim_task(connection, machine, "PowerOff", machine=machine, limit_s=limit_s)
    except VsphereFailed as failed:
        if failed.fault is Fault.GONE:
            return
        if failed.fault is not Fault.WRONG_STATE or await power_state(connection, machine) != OFF:
            raise


async def power_state(connection: Connection, machine: Any) -> Any:
    """ON, OFF or SUSPENDED. Raises VsphereFailed."""
    return await connection.property(machine, "runtime.powerState")


async def create(connection: Connection, base: Base, target: Target, spec: MachineSpec, place: Place) -> Any:
    """A machine on the disks of the base, which stay as they are. Raises JobError, HostDiskFailed, VsphereFailed."""
    config = _config(base, spec, place)
    try:
        if connection.about.apiType == HOST:
            return await create_child(connection, config, base, target, place.uuid)
        clone = vim.vm.CloneSpec(
            location=vim.vm.RelocateSpec(
                pool=target.pool, datastore=target.datastore, diskMoveType="createNewChildDiskBacking"
            ),
            snapshot=base.snapshot,
            config=config,
            powerOn=False,
            template=False,
        )
        arguments = (target.folder, place.name, clone)
        return await vim_task(connection, base.machine, "Clone", *arguments, limit_s=CREATE_LIMIT_S)
    except VsphereFailed as failed:
        raise _as_ours(failed, base) from failed


def _as_ours(failed: VsphereFailed, base: Base) -> Exception:
    if failed.fault is Fault.NO_SPACE:
        return HostDiskFailed(str(failed))
    if failed.fault is Fault.UNSUPPORTED:
        return JobError(f"the vSphere server can't make a machine of {base.config.name}: {failed}")
    return failed


def _config(base: Base, spec: MachineSpec, place: Place) -> Any:
    return vim.vm.ConfigSpec(
        uuid=place.uuid,
        instanceUuid=place.uuid,
        annotation=f"A BOINC job's, made by vmwrapper: {spec.identity}",
        numCPUs=spec.cpus,
        numCoresPerSocket=1,
        memoryMB=spec.memory_mib - spec.memory_mib % 4,  # vSphere takes multiples of 4 only
        extraConfig=[
            vim.option.OptionValue(key=IDENTITY_KEY, value=place.mark),
            vim.option.OptionValue(key="disk.EnableUUID", value="TRUE"),  # for the guest to see that of its disks
        ],
        deviceChange=[*_without_network(base), *_scratch(base, spec.scratch_mib)],
    )


def _without_network(base: Base) -> Sequence[Any]:
    """Commands reach a guest without any network; a job gets none that its host can't keep apart."""
    edit = vim.vm.device.VirtualDeviceSpec
    cards = [one for one in base.config.hardware.device if isinstance(one, vim.vm.device.VirtualEthernetCard)]
    return [edit(operation=edit.Operation.remove, device=card) for card in cards]


def _scratch(base: Base, size_mib: int) -> Sequence[Any]:
    """The empty disk."""
    if not size_mib:
        return ()
    devices = base.config.hardware.device
    controllers = [one for one in devices if isinstance(one, vim.vm.device.VirtualSCSIController)]
    for controller in controllers:
        taken = {one.unitNumber for one in devices if one.controllerKey == controller.key}
        for unit in _UNITS:
            if unit not in taken:
                return [_new_disk(controller.key, unit, size_mib)]
    raise JobError(f"the machine {base.config.name} has no SCSI controller with room for one more disk")


def _new_disk(controller: int, unit: int, size_mib: int) -> Any:
    edit = vim.vm.device.VirtualDeviceSpec
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName="", diskMode="persistent", thinProvisioned=True, uuid=SCRATCH_UUID
    )
    disk = vim.vm.device.VirtualDisk(
        key=-1, controllerKey=controller, unitNumber=unit, capacityInKB=size_mib * _KIB_PER_MIB, backing=backing
    )
    return edit(operation=edit.Operation.add, fileOperation=edit.FileOperation.create, device=disk)
