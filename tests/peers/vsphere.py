"""A vSphere server as vmwrapper is told of it: vcsim, with a base machine whose owner allows clones of it."""

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyVim.connect import SmartStubAdapter
from pyVim.task import WaitForTask
from pyVmomi import vim

from vmwrapper.hypervisor.interface import Login, MachineIdentity
from vmwrapper.hypervisor.vmware.vsphere.image import SNAPSHOT
from vmwrapper.hypervisor.vmware.vsphere.place import place_of
from vmwrapper.hypervisor.vmware.vsphere.settings import Settings

from . import vcsim

ROOT = Login("root", vcsim.GUEST_ACCOUNTS["root"])
OWNER = "0123456789abcdef" * 2
ADA = Login("ada", vcsim.GUEST_ACCOUNTS["ada"])


class Server:
    """One that serves, and files that tell of it."""

    def __init__(self, folder: Path, simulator: vcsim.Simulator) -> None:
        self.simulator = simulator
        self.image = folder / "guest.vsphere"
        self.image.write_text(f"machine = {json.dumps(simulator.base_machine)}\n")
        self.settings = Settings(
            host=simulator.host,
            port=simulator.port,
            user=simulator.user,
            password=simulator.password,
            ca_file=simulator.ca_file,
            owner=OWNER,
        )
        self.settings_file = folder / "vsphere.toml"
        self.settings_file.touch(0o600)
        told = {name: getattr(simulator, name) for name in ("host", "port", "user", "password")}
        told["ca_file"] = str(simulator.ca_file)
        self.settings_file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in told.items()))

    @property
    def environment(self) -> dict[str, str]:
        """What tells vmwrapper of it."""
        return {"VMWRAPPER_VSPHERE": str(self.settings_file), "XDG_CONFIG_HOME": str(self.settings_file.parent)}

    @contextmanager
    def owner(self) -> Iterator[Any]:
        """The ServiceContent that somebody else sees, who is logged in, too."""
        trusted = ssl.create_default_context(cafile=str(self.simulator.ca_file))
        stub = SmartStubAdapter(host=self.settings.host, port=self.settings.port, sslContext=trusted)
        try:
            content = vim.ServiceInstance("ServiceInstance", stub).content
            content.sessionManager.Login(self.settings.user, self.settings.password)
            yield content
            content.sessionManager.Logout()
        finally:
            stub.DropConnections()

    def machines(self) -> list[str]:
        """Names of all in the inventory."""
        with self.owner() as content:
            return sorted(machine.name for machine in machines_in(content))


def machines_in(content: Any) -> list[Any]:
    """All of the inventory."""
    view = content.viewManager.CreateContainerView(
        container=content.rootFolder, type=[vim.VirtualMachine], recursive=True
    )
    return list(view.view)


def machine_of(content: Any, identity: MachineIdentity) -> Any:
    """The machine of that identity's slot."""
    return content.searchIndex.FindByUuid(uuid=place_of(identity, OWNER).uuid, vmSearch=True, instanceUuid=True)


def missing() -> str | None:
    return vcsim.missing()


@contextmanager
def server(folder: Path, *, kind: vcsim.Kind = "vpx", guests: bool = True) -> Iterator[Server]:
    """One for the length of the block."""
    with vcsim.simulator(folder, kind=kind, guests=guests) as simulator:
        ours = Server(folder, simulator)
        with ours.owner() as content:
            path = simulator.base_machine if guests else simulator.machines[0]
            base = content.searchIndex.FindByInventoryPath(path)
            WaitForTask(base.CreateSnapshot(name=SNAPSHOT, memory=False, quiesce=False))
        if not guests:
            ours.image.write_text(f"machine = {json.dumps(path)}\n")
        yield ours
