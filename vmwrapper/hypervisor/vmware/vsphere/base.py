"""Finds what machines are made from: a machine on the server whose owner allows that by a snapshot of it."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from vmwrapper.concurrency import to_its_end
from vmwrapper.errors import GuestError, JobError
from vmwrapper.hypervisor.vmware.vsphere.connection import Connection
from vmwrapper.hypervisor.vmware.vsphere.datastore_file import content
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.image import SNAPSHOT, BaseImage, By
from vmwrapper.hypervisor.vmware.vsphere.inventory import datacenter, target_of, walk
from vmwrapper.hypervisor.vmware.vsphere.transfer import Transfers
from vmwrapper.hypervisor.vmware.vsphere.vim_task import vim_task

_REGISTER_LIMIT_S = 120.0
_MOST_LISTED_BYTES = 1 << 20
_ALLOWS = re.compile(rb'^snapshot\d+\.displayName = "%b"\r?$' % SNAPSHOT.encode(), re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A machine that ours are made from, and what the server says of it."""

    machine: Any
    snapshot: Any
    """From which clones are made."""
    config: Any
    """As it was at that snapshot."""


@asynccontextmanager
async def base_of(connection: Connection, transfers: Transfers, image: BaseImage) -> AsyncIterator[Base]:
    """The base machine, registered for the length of the block where only its file is there.

    Raises JobError where there is none, or where its owner has not allowed it.
    """
    machine = await _found(connection, image)
    is_ours = False
    if machine is None and image.by is By.FILE:
        machine, is_ours = await _registered(connection, transfers, image)
    if machine is None:
        raise JobError(f"the vSphere server {connection} has no machine of {image}")
    try:
        yield await _base(connection, image, machine)
    finally:
        if is_ours:
            with suppress(VsphereFailed):  # it stays where another job's machine has it in use
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


async def _registered(connection: Connection, transfers: Transfers, image: BaseImage) -> tuple[Any, bool]:
    """The machine, and whether it was us who has registered it."""
    await _must_be_allowed(connection, transfers, image)
    target, as_template = await target_of(connection, None), False
    words = (image.name, None, as_template, target.pool, None)
    try:
        return await vim_task(connection, target.folder, "RegisterVm", *words, limit_s=_REGISTER_LIMIT_S), True
    except VsphereFailed as failed:
        if failed.fault is Fault.EXISTS and (machine := await _found(connection, image)):  # somebody has, just now
            return machine, False
        if failed.fault in (Fault.NO_FILE, Fault.UNUSABLE_FILE, Fault.GONE, Fault.WRONG_REQUEST, Fault.EXISTS):
            raise JobError(f"the vSphere server can't register {image}: {failed}") from failed
        raise


async def _must_be_allowed(connection: Connection, transfers: Transfers, image: BaseImage) -> None:
    """Raise JobError unless the file beside the machine's that tells of its snapshots has one that allows jobs."""
    name = f"{image.name.removesuffix('.vmx')}.vmsd"
    try:
        listed = await content(
            connection, transfers, name, await datacenter(connection), limit_bytes=_MOST_LISTED_BYTES
        )
    except GuestError as error:
        raise JobError(f"the snapshots of {image} are too many to be read") from error
    except VsphereFailed as failed:
        if failed.fault is not Fault.REFUSED_FILE:
            raise
        listed = b""
    if not _ALLOWS.search(listed):
        raise _not_allowed(image)


def _not_allowed(image: BaseImage) -> JobError:
    return JobError(
        f"the machine of {image} has no snapshot {SNAPSHOT!r}: its owner takes it, while it is off, to allow this"
    )


async def _base(connection: Connection, image: BaseImage, machine: Any) -> Base:
    roots = await connection.property(machine, "snapshot.rootSnapshotList")
    found = next((one for one in walk(roots or ()) if one.name == SNAPSHOT), None)
    if found is None:
        raise _not_allowed(image)
    if found.state != "poweredOff":
        raise JobError(
            f"the snapshot {SNAPSHOT!r} of {image} was taken while it was on: it must be taken while it is off"
        )
    config = await connection.property(found.snapshot, "config")
    return Base(machine=machine, snapshot=found.snapshot, config=config)
