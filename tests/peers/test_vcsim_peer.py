"""What the simulator really does of vSphere, over SOAP and TLS: vmwrapper's tests take that for granted."""

import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from pyVim.connect import SmartConnect, SmartStubAdapter
from pyVmomi import vim

from .vcsim import GUEST_ACCOUNTS, Simulator

pytestmark = pytest.mark.vcsim


@contextmanager
def logged_in(server: Simulator, *, password: str | None = None) -> Iterator[Any]:
    trusted = ssl.create_default_context(cafile=str(server.ca_file))
    stub = SmartStubAdapter(host=server.host, port=server.port, sslContext=trusted)  # SmartConnect leaks at a failure
    try:
        service = vim.ServiceInstance("ServiceInstance", stub)
        service.content.sessionManager.Login(server.user, password or server.password)
        yield service
    finally:
        stub.DropConnections()


def done(task: Any) -> Any:
    """Its result; tasks of the simulator have ended when one gets them."""
    if task.info.error is not None:
        raise task.info.error
    return task.info.result


def clone(service: Any, server: Simulator, name: str) -> Any:
    base = service.content.searchIndex.FindByInventoryPath(server.base_machine)
    spec = vim.vm.CloneSpec(
        location=vim.vm.RelocateSpec(diskMoveType="createNewChildDiskBacking", pool=base.resourcePool),
        snapshot=base.snapshot.rootSnapshotList[0].snapshot,
    )
    return done(base.CloneVM_Task(folder=base.parent, name=name, spec=spec))


class Guest:
    """Of one machine, as one of its users."""

    def __init__(self, service: Any, server: Simulator, machine: Any, user: str = "root", password: str = "") -> None:
        self._managers = service.content.guestOperationsManager
        self._server, self._machine = server, machine
        password = password or GUEST_ACCOUNTS[user]
        self._auth = vim.vm.guest.NamePasswordAuthentication(username=user, password=password)

    def __getattr__(self, name: str) -> Any:
        """Any operation on files or processes by its name, with arguments after machine and login."""
        manager = next(found for found in (self.files, self.processes) if hasattr(type(found), name))
        return partial(getattr(manager, name), self._machine, self._auth)

    @property
    def files(self) -> Any:
        return self._managers.fileManager

    @property
    def processes(self) -> Any:
        return self._managers.processManager

    def put(self, path: str, content: bytes) -> None:
        attributes = vim.vm.guest.FileManager.PosixFileAttributes(permissions=0o640)
        offered = self.InitiateFileTransferToGuest(path, attributes, len(content), True)  # noqa: FBT003  (pyvmomi has it so)
        self._move(offered, content)

    def get(self, path: str) -> bytes:
        offered = self.InitiateFileTransferFromGuest(path)
        content = self._move(offered.url)
        assert offered.size == len(content)
        return content

    def _move(self, url: str, content: bytes | None = None) -> bytes:
        assert url.startswith("https://*/")
        url = url.replace("*", f"{self._server.host}:{self._server.port}")
        trusted = ssl.create_default_context(cafile=str(self._server.ca_file))
        request = urllib.request.Request(url, content, method="GET" if content is None else "PUT")
        with urllib.request.urlopen(request, context=trusted) as answer:
            return answer.read()

    def start(self, program: str, arguments: str = "") -> int:
        spec = vim.vm.guest.ProcessManager.ProgramSpec(programPath=program, arguments=arguments)
        return self.StartProgramInGuest(spec)

    def exit_code(self, pid: int) -> int:
        for _ in range(100):
            [process] = self.ListProcessesInGuest([pid])
            if process.endTime is not None:
                return process.exitCode
            assert process.exitCode is None
            time.sleep(0.05)
        raise AssertionError(f"process {pid} still runs")

    def names(self, path: str) -> set[str]:
        return {file.path for file in self.ListFilesInGuest(path).files}


@pytest.mark.parametrize("vsphere", ["vpx", "esx"], indirect=True)
def test_finds_the_inventory(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        content = service.RetrieveContent()
        assert content.about.apiType == {"vpx": "VirtualCenter", "esx": "HostAgent"}[vsphere.kind]
        found = [content.searchIndex.FindByInventoryPath(path) for path in vsphere.machines]
        assert [f"{vsphere.datacenter}/vm/{machine.name}" for machine in found] == vsphere.machines
        assert found[0].runtime.powerState == "poweredOff"
        store = content.searchIndex.FindByInventoryPath(f"{vsphere.datacenter}/datastore/{vsphere.datastore}")
        assert store.name == vsphere.datastore


def test_verifies_the_certificate(vsphere: Simulator) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        SmartConnect(host=vsphere.host, port=vsphere.port, user=vsphere.user, pwd=vsphere.password)


def test_refuses_a_wrong_password(vsphere: Simulator) -> None:
    with pytest.raises(vim.fault.InvalidLogin), logged_in(vsphere, password="wrong"):
        pass


def test_goes_away_and_forgets_sessions(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        machine = service.content.searchIndex.FindByInventoryPath(vsphere.machines[0])
        with vsphere.away(), pytest.raises((ConnectionError, ssl.SSLError)):
            machine.PowerOn()
        with pytest.raises(vim.fault.NotAuthenticated):
            machine.PowerOn()


def test_reads_unset_properties(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        machine = service.content.searchIndex.FindByInventoryPath(vsphere.machines[0])
        assert machine.snapshot is None


def test_runs_guests(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        machine = clone(service, vsphere, "one")
        assert machine.guest.toolsRunningStatus == "guestToolsNotRunning"
        guest = Guest(service, vsphere, machine)
        with pytest.raises(vim.fault.InvalidPowerState):
            guest.ListFilesInGuest("/tmp")
        done(machine.PowerOn())
        assert machine.guest.toolsRunningStatus == "guestToolsRunning"
        guest.put("/tmp/x", b"1")
        print(guest.get("/tmp/x"))
        print(guest.start("/bin/sh", "-c 'exit 7'"))
