"""Files of the server's datastores, fetched by HTTPS.

Source: VMware's "Using HTTP Access to vSphere Server Files": /folder/PATH, with the session's cookie.
"""

import re
from typing import Any
from urllib.parse import quote, urlencode

from vmwrapper.hypervisor.vmware.vsphere.connection import Connection
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.inventory import centre_of, path_of
from vmwrapper.hypervisor.vmware.vsphere.transfer import Transfers
from vmwrapper.hypervisor.vmware.vsphere.vim_task import vim_task

_NAME = re.compile(r"\[(?P<datastore>[^\]]+)\] (?P<path>[^/].*)")
_DELETE_LIMIT_S = 300.0


async def taken(connection: Connection, transfers: Transfers, machine: Any, name: str, *, limit_bytes: int) -> bytes:
    """The content of the machine's file `[datastore] path`, which is gone then. Raises VsphereFailed, GuestError."""
    centre = await centre_of(connection, machine)
    try:
        return await content(connection, transfers, name, centre, limit_bytes=limit_bytes)
    finally:
        await delete(connection, name, centre)


async def delete(connection: Connection, name: str, datacenter: Any) -> None:
    """Have `[datastore] path` no more, and if it is a folder, all that is in it. Raises VsphereFailed."""
    files = connection.content.fileManager
    try:
        await vim_task(connection, files, "DeleteFile", name, datacenter, limit_s=_DELETE_LIMIT_S)
    except VsphereFailed as failed:
        if failed.fault is not Fault.NO_FILE:
            raise


async def content(
    connection: Connection, transfers: Transfers, name: str, datacenter: Any, *, limit_bytes: int
) -> bytes:
    """The content of a file `[datastore] path` of the datacenter's. Raises VsphereFailed, GuestError for more."""
    url = url_of(name, await path_of(connection, datacenter))
    return await transfers.get_bytes(url, limit_bytes=limit_bytes, in_session=True)


def url_of(name: str, datacenter: str) -> str:
    """Where `[datastore] path` is to be had, with `*` for the host. Raises VsphereFailed for what is no such name."""
    if not (found := _NAME.fullmatch(name)):
        raise VsphereFailed("the vSphere server names no file of a datastore", Fault.OTHER)
    where = urlencode({"dcPath": datacenter, "dsName": found["datastore"]})
    return f"https://*/folder/{quote(found['path'])}?{where}"
