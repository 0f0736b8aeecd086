"""VMware as a hypervisor: a vSphere server, where one is configured, else Workstation, Fusion or Player on this host.

pyvmomi is imported only once a server is used: that takes 0.1 s and 20 MB which no other job has a use for.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING

from vmwrapper.clock import RunningClock
from vmwrapper.hypervisor.interface import Abilities, Hypervisor, Leftover, Machine, MachineSpec, ProbeResult
from vmwrapper.hypervisor.vmware.vmrun.backend import VmrunHypervisor
from vmwrapper.hypervisor.vmware.vsphere.image import IMAGE_SUFFIXES
from vmwrapper.hypervisor.vmware.vsphere.settings import is_configured, read_settings

if TYPE_CHECKING:
    from vmwrapper.hypervisor.vmware.vsphere.backend import VsphereHypervisor


class VmwareHypervisor:
    """See `Hypervisor`."""

    name = "vmware"

    def __init__(self) -> None:
        self._is_configured = is_configured()
        self._vmrun = VmrunHypervisor()

    @cached_property
    def _vsphere(self) -> "VsphereHypervisor":
        from vmwrapper.hypervisor.vmware.vsphere.backend import VsphereHypervisor  # noqa: PLC0415  (see above)

        return VsphereHypervisor(read_settings)

    @property
    def _chosen(self) -> Hypervisor:
        return self._vsphere if self._is_configured else self._vmrun

    @property
    def image_suffixes(self) -> tuple[str, ...]:
        return IMAGE_SUFFIXES if self._is_configured else self._vmrun.image_suffixes

    @property
    def abilities(self) -> Abilities:
        if self._is_configured and "_vsphere" not in self.__dict__:  # it was not probed: what it is able to at best
            return Abilities(
                guest_commands=True, needs_login=True, memory_snapshots=True, live_snapshots=True, screen=True
            )
        return self._chosen.abilities

    async def probe(self, clock: RunningClock) -> ProbeResult:
        return await self._chosen.probe(clock)

    def machine(self, spec: MachineSpec, clock: RunningClock) -> AbstractAsyncContextManager[Machine]:
        return self._chosen.machine(spec, clock)

    async def leftovers(self) -> Sequence[Leftover]:
        """Of both: a server may have been configured since."""
        vsphere = await self._vsphere.leftovers() if self._is_configured else ()
        return [*vsphere, *await self._vmrun.leftovers()]
