"""Finds where machines belong, in the inventory of a server."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from vmwrapper.errors import NoUsableHypervisor
from vmwrapper.hypervisor.vmware.vsphere.connection import Connection

_DEEPEST = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a new machine goes."""

    folder: Any
    pool: Any
    datastore: Any
    """None for the base machine's."""
    datastore_name: str | None


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
