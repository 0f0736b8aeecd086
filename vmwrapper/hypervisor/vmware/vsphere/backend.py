"""A vSphere server, vCenter or an ESX host, as a hypervisor."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import to_its_end
from vmwrapper.errors import NoUsableHypervisor, TemporaryFailure
from vmwrapper.hypervisor.interface import Abilities, Leftover, Machine, MachineSpec, ProbeResult
from vmwrapper.hypervisor.vmware.vsphere import left
from vmwrapper.hypervisor.vmware.vsphere.base import base_of
from vmwrapper.hypervisor.vmware.vsphere.connection import connected
from vmwrapper.hypervisor.vmware.vsphere.guest import GuestOperations, VsphereGuest
from vmwrapper.hypervisor.vmware.vsphere.image import IMAGE_SUFFIXES, base_image
from vmwrapper.hypervisor.vmware.vsphere.machine import VsphereMachine
from vmwrapper.hypervisor.vmware.vsphere.own import Own
from vmwrapper.hypervisor.vmware.vsphere.settings import Settings
from vmwrapper.hypervisor.vmware.vsphere.transfer import transfers

log = logging.getLogger(__name__)

_PROBE_LIMIT_S = 8.0
_END_LIMIT_S = 180.0
_SIMULATORS = frozenset({"dbed6e0c-bd88-4ef6-b594-21283e1c677f"})
"""Servers' instance UUIDs: govmomi's vcsim, whose snapshots have no memory."""


class VsphereHypervisor:
    """See `Hypervisor`. What it is able to do is known once it was probed: it depends on the server."""

    name = "vmware"
    image_suffixes = IMAGE_SUFFIXES

    def __init__(self, read_settings: Callable[[], Settings]) -> None:
        self._read_settings = read_settings
        self._settings: Settings | None = None
        self._keeps_memory = True

    @property
    def abilities(self) -> Abilities:
        return Abilities(
            guest_commands=True,
            needs_login=True,
            memory_snapshots=self._keeps_memory,
            live_snapshots=self._keeps_memory,
            screen=True,
        )

    async def probe(self, clock: RunningClock) -> ProbeResult:
        try:
            async with clock.timeout(_PROBE_LIMIT_S):
                settings = await asyncio.to_thread(self._read_settings)
                async with connected(settings) as connection:
                    return self._known(settings, connection.about)
        except TimeoutError:
            return self._result(None, f"the vSphere server gave no answer within {_PROBE_LIMIT_S:g} s")
        except TemporaryFailure as error:
            return self._result(None, str(error))

    def _known(self, settings: Settings, about: Any) -> ProbeResult:
        self._settings = settings
        self._keeps_memory = about.instanceUuid not in _SIMULATORS
        reasons = () if self._keeps_memory else ("it is a simulator, whose snapshots have no memory: no checkpoints",)
        return self._result(f"{about.name} {about.version}, API {about.apiVersion}, at {settings.host}", *reasons)

    def _result(self, version: str | None, *reasons: str) -> ProbeResult:
        return ProbeResult(
            name=self.name,
            version=version,
            usable=self._settings is not None,
            accelerated=self._settings is not None,  # ESX runs on no processor without virtualization
            reasons=reasons,
            abilities=self.abilities,
        )

    @asynccontextmanager
    async def machine(self, spec: MachineSpec, clock: RunningClock) -> AsyncIterator[Machine]:
        if self._settings is None:
            raise NoUsableHypervisor("the vSphere server was not probed, or was found unusable")
        image = await asyncio.to_thread(base_image, spec.image)
        async with (
            connected(self._settings) as connection,
            transfers(connection) as ways,
            base_of(connection, ways, image) as base,
        ):
            own = Own(connection, base, spec, spec.snapshots if self._keeps_memory else ())
            guest = None
            if spec.login is not None:
                guest = VsphereGuest(GuestOperations(connection, ways, own.handle, spec.login, clock))
            try:
                await own.have()
                yield VsphereMachine(
                    connection,
                    own.handle,
                    spec,
                    snapshots=own.snapshots,
                    renew=own.renew,
                    guest=guest,
                    transfers=ways,
                )
            finally:
                await to_its_end(own.end(), limit_s=_END_LIMIT_S)

    async def leftovers(self) -> Sequence[Leftover]:
        return await left.found(await asyncio.to_thread(self._read_settings))
