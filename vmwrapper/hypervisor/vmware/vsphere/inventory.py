"""Finds what machines are made from, and where they belong, in the inventory of a server."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from vmwrapper.concurrency import to_its_end
from vmwrapper.errors import JobError, NoUsableHypervisor
from vmwrapper.hypervisor.vmware.vsphere.connection import Connection
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.image import SNAPSHOT, BaseImage, By
from vmwrapper.hypervisor.vmware.vsphere.vim_task import vim_task

_REGISTER_LIMIT_S = 120.0
_DEEPEST = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A machine that ours are made from, and what the server says of it."""

    machine: Any
    snapshot: Any
    """From which clones are made."""
    config: Any
    """As it was at that snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a new machine goes."""

    folder: Any
    pool: Any
    datastore: Any
    """None for the base machine's."""
    datastore_name: str | None


@asynccontextmanager
async def base_of(connection: Connection, image: BaseImage) -> AsyncIterator[Base]:
    """The base machine, registered for the length of the block where only its file is there.

    Raises JobError where there is none, or where its owner has not allowed it.
    """
    machine = await _found(connection, image)
    is_ours = False
    if machine is None and image.by is By.FILE:
        machine, is_ours = await _registered(connection, image), True
    if machine is None:
        raise JobError(f"the vSphere server {connection} has no machine of {image}")
    try:
        yield await _base(connection, image, machine)
    finally:
        if is_ours:
            with suppress(VsphereFailed):  # another job of ours may need it, or may have done the same
                await to_its_end(connection.call(machine, "Unregister"))


async def _found(connection: Connection, image: BaseImage) -> Any:
    index = connection.content.searchIndex
    match image.by:
        case By.PATH:
            found = await connection.call(index, "FindByInventoryPath", image.name.strip("/"))
        case By.UUID:
            found = await connection.call(index, "FindByUuid", None, image.name, True, False)  # noqa: FBT003
            if found is None:
                found = await connection.call(index, "FindByUuid", None, image.name, True, True)  # noqa: FBT003
        case By.FILE:
            found = await connection.call(index, "FindByDatastorePath", await datacenter(connection), image.name)
    return found if isinstance(found, vim.VirtualMachine) else None


async def _registered(connection: Connection, image: BaseImage) -> Any:
    target, as_template = await target_of(connection, None), False
    words = (image.name, None, as_template, target.pool, None)
    try:
        return await vim_task(connection, target.folder, "RegisterVm", *words, limit_s=_REGISTER_LIMIT_S)
    except VsphereFailed as failed:
        if failed.fault is Fault.EXISTS:  # by another job, just now
            return await _found(connection, image)
        if failed.fault in (Fault.UNUSABLE_FILE, Fault.GONE, Fault.WRONG_REQUEST):
            raise JobError(f"the vSphere server can't register {image}: {failed}") from failed
        raise


async def _base(connection: Connection, image: BaseImage, machine: Any) -> Base:
    roots = await connection.property(machine, "snapshot.rootSnapshotList")
    found = next((one for one in walk(roots or ()) if one.name == SNAPSHOT), None)
    if found is None:
        raise JobError(
            f"the machine of {image} has no snapshot {SNAPSHOT!r}: its owner takes it, while it is off, to allow this"
        )
    if found.state != "poweredOff":
        raise JobError(
            f"the snapshot {SNAPSHOT!r} of {image} was taken while it was on: it must be taken while it is off"
        )
    config = await connection.property(found.snapshot, "config")
    return Base(machine=machine, snapshot=found.snapshot, config=config)


def walk(tree: Any) -> Iterator[Any]:
    """All snapshots of a tree, older ones first. As deep as the server says: without recursion."""
    waiting = list(tree)
    while waiting:
        one = waiting.pop(0)
        yield one
        waiting.extend(one.childSnapshotList or ())


async def datacenter(connection: Connection) -> Any:
    """The one that is named in the settings, or the only one. Raises NoUsableHypervisor."""
    if name := connection.settings.datacenter:
        found = await connection.call(connection.content.searchIndex, "FindByInventoryPath", name)
        if not isinstance(found, vim.Datacenter):
            raise NoUsableHypervisor(f"the vSphere server {connection} has no datacenter {name!r}")
        return found
    children = await connection.property(connection.content.rootFolder, "childEntity")
    found = [child for child in children or () if isinstance(child, vim.Datacenter)]
    if len(found) != 1:
        raise NoUsableHypervisor(
            f"the vSphere server {connection} has {len(found)} datacenters: name one in the settings"
        )
    return found[0]


async def target_of(connection: Connection, machine: Any) -> Target:
    """Where a new machine goes: as the settings say, else beside `machine`, else where the datacenter has it."""
    settings = connection.settings
    beside = (await connection.properties({machine: ["parent", "resourcePool"]}))[machine] if machine else {}
    folder = await _named(connection, settings.folder, vim.Folder) if settings.folder else beside.get("parent")
    pool = (
        await _named(connection, settings.resource_pool, vim.ResourcePool)
        if settings.resource_pool
        else beside.get("resourcePool")
    )
    centre = await centre_of(connection, machine) if machine else await datacenter(connection)
    if folder is None:
        folder = await connection.property(centre, "vmFolder")
    if pool is None:
        pool = await _first_pool(connection, centre)
    datastore = await _datastore(connection, centre) if settings.datastore else None
    return Target(folder=folder, pool=pool, datastore=datastore, datastore_name=settings.datastore)


async def _named(connection: Connection, path: str, kind: type) -> Any:
    found = await connection.call(connection.content.searchIndex, "FindByInventoryPath", path.strip("/"))
    if not isinstance(found, kind):
        what = kind.__name__.rpartition(".")[2]
        raise NoUsableHypervisor(f"the vSphere server {connection} has no {what} {path!r}, which the settings name")
    return found


async def path_of(connection: Connection, thing: Any) -> str:
    """Its inventory path. Raises VsphereFailed."""
    names: list[str] = []
    for _ in range(_DEEPEST):
        found = (await connection.properties({thing: ["name", "parent"]}))[thing]
        if (above := found.get("parent")) is None:  # the root folder, which no path begins with
            return "/".join(reversed(names))
        names.append(found["name"])
        thing = above
    raise NoUsableHypervisor(f"the vSphere server {connection} shows folders without end")


async def centre_of(connection: Connection, machine: Any) -> Any:
    """The datacenter in whose inventory the machine is."""
    above = machine
    for _ in range(_DEEPEST):
        above = await connection.property(above, "parent")
        if above is None or isinstance(above, vim.Datacenter):
            return above or await datacenter(connection)
    raise NoUsableHypervisor(f"the vSphere server {connection} shows folders without end")


async def _first_pool(connection: Connection, centre: Any) -> Any:
    """Of a template, which is in none: that of the datacenter's only host or cluster."""
    hosts = await connection.property(await connection.property(centre, "hostFolder"), "childEntity")
    found = [one for one in hosts or () if isinstance(one, vim.ComputeResource)]
    if not found:
        raise NoUsableHypervisor(
            f"the vSphere server {connection} shows no hosts: name a resource_pool in the settings"
        )
    return await connection.property(found[0], "resourcePool")


async def _datastore(connection: Connection, centre: Any) -> Any:
    stores = await connection.property(centre, "datastore") or ()
    names = await connection.properties({store: ["name"] for store in stores}) if stores else {}
    for store, said in names.items():
        if said.get("name") == connection.settings.datastore:
            return store
    raise NoUsableHypervisor(f"the vSphere server {connection} has no datastore {connection.settings.datastore!r}")
