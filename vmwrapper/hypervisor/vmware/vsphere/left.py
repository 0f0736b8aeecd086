"""What the server still has of machines of ours: those whose wrapper was killed, and whose slot nobody ran again."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from pyVmomi import vim, vmodl

from vmwrapper.folders import MACHINE_FOLDER
from vmwrapper.hostile import one_line
from vmwrapper.hypervisor.interface import Leftover, slot_in
from vmwrapper.hypervisor.vmware.vsphere.connection import Connection, Properties, connected
from vmwrapper.hypervisor.vmware.vsphere.made import remove
from vmwrapper.hypervisor.vmware.vsphere.place import PREFIX, identity_of, uuid_of
from vmwrapper.hypervisor.vmware.vsphere.settings import Settings

_STATES = {"poweredOn": ", which runs", "suspended": ", which is suspended"}


async def found(settings: Settings) -> Sequence[Leftover]:
    """See `Hypervisor.leftovers`."""
    async with connected(settings) as connection:
        named = [machine async for machine, said in _machines(connection) if str(said.get("name")).startswith(PREFIX)]
        if not named:
            return ()
        wanted = ["name", "config.extraConfig", "config.instanceUuid", "runtime.powerState"]
        told = await connection.properties(dict.fromkeys(named, wanted))
        return [left for machine, said in told.items() if (left := _leftover(settings, machine, said))]


def _leftover(settings: Settings, machine: Any, said: Properties) -> Leftover | None:
    identity = identity_of(said.get("config.extraConfig") or (), settings.owner)
    slot = slot_in(identity) if identity else None
    if slot is None or uuid_of(slot, settings.owner) != said.get("config.instanceUuid"):
        return None
    name, state = one_line(str(said.get("name"))), _STATES.get(str(said.get("runtime.powerState")), "")
    return Leftover(
        what=f"the vSphere server {settings.host}'s machine {name} of {one_line(str(slot))}{state}",
        slot=slot,
        files=slot / MACHINE_FOLDER,
        remove=partial(_remove, settings, machine._moId),  # noqa: SLF001  (pyvmomi has no other name for it)
    )


async def _remove(settings: Settings, machine_id: str) -> None:
    async with connected(settings) as connection:
        await remove(connection, connection.machine(machine_id))


async def _machines(connection: Connection) -> AsyncIterator[tuple[Any, Properties]]:
    """All that there are, with their names."""
    async with AsyncExitStack() as made:
        views = connection.content.viewManager
        root, all_below = connection.content.rootFolder, True
        view = await connection.call(views, "CreateContainerView", root, [vim.VirtualMachine], all_below)
        made.push_async_callback(connection.call, view, "Destroy")
        kind = vmodl.query.PropertyCollector
        through = kind.TraversalSpec(type=type(view), path="view", skip=False)
        spec = kind.FilterSpec(
            propSet=[kind.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
            objectSet=[kind.ObjectSpec(obj=view, skip=True, selectSet=[through])],
        )
        for machine, said in (await connection.collected(spec)).items():
            yield machine, said
