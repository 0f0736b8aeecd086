"""What the simulator really does of vSphere, over SOAP and TLS: vmwrapper's tests take that for granted."""

import random
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyVim.connect import SmartConnect, SmartStubAdapter
from pyVmomi import vim, vmodl

from .cutting_proxy import cutting_proxy
from .podman import Podman
from .vcsim import GUEST_ACCOUNTS, Simulator, missing, simulator

pytestmark = pytest.mark.vcsim


@contextmanager
def logged_in(server: Simulator, *, password: str | None = None, port: int | None = None) -> Iterator[Any]:
    trusted = ssl.create_default_context(cafile=str(server.ca_file))
    # SmartConnect leaks a socket where it fails.
    stub = SmartStubAdapter(host=server.host, port=port or server.port, sslContext=trusted)
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
        offered = self.InitiateFileTransferToGuest(path, attributes, len(content), overwrite=True)
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


def test_runs_programs(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        machine = clone(service, vsphere, "one")
        guest, ada = Guest(service, vsphere, machine), Guest(service, vsphere, machine, user="ada")
        with pytest.raises(vim.fault.InvalidPowerState):
            guest.start("/bin/true")
        done(machine.PowerOn())
        assert machine.guest.toolsRunningStatus == "guestToolsRunning"
        with pytest.raises(vim.fault.InvalidGuestLogin):
            Guest(service, vsphere, machine, password="wrong").start("/bin/true")
        with pytest.raises(vim.fault.FileNotFound):
            guest.start("/bin/absent")

        assert guest.exit_code(guest.start("/bin/true")) == 0
        assert guest.exit_code(ada.start("/bin/sh", "-c 'id -un >/tmp/who; exit 7'")) == 7
        assert guest.get("/tmp/who") == b"ada\n"

        pid = guest.start("/bin/sleep", "1000")
        assert pid in {process.pid for process in guest.ListProcessesInGuest([])}
        with pytest.raises(vim.fault.GuestPermissionDenied):
            ada.TerminateProcessInGuest(pid)
        guest.TerminateProcessInGuest(pid)
        assert guest.exit_code(pid) == -1
        with pytest.raises(vim.fault.GuestProcessNotFound):
            guest.TerminateProcessInGuest(pid)


def test_has_files(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        machine = clone(service, vsphere, "one")
        done(machine.PowerOn())
        guest, ada = Guest(service, vsphere, machine), Guest(service, vsphere, machine, user="ada")
        guest.MakeDirectoryInGuest("/var/new/deep", createParentDirectories=True)
        guest.put("/var/new/file", b"old")
        assert guest.names("/var/new") == {".", "..", "deep", "file"}
        [file] = guest.ListFilesInGuest("/var/new/file").files
        assert (file.type, file.size, file.attributes.permissions) == ("file", 3, 0o640)
        guest.MoveFileInGuest("/var/new/file", "/var/new/moved", overwrite=False)
        assert guest.get("/var/new/moved") == b"old"

        faults = {
            vim.fault.FileNotFound: [
                partial(guest.get, "/var/new/file"),
                partial(guest.put, "/var/absent/file", b""),
                partial(guest.ListFilesInGuest, "/var/absent"),
                partial(guest.DeleteFileInGuest, "/var/new/file"),
                partial(guest.MakeDirectoryInGuest, "/var/absent/deep", createParentDirectories=False),
            ],
            vim.fault.FileAlreadyExists: [
                partial(guest.MakeDirectoryInGuest, "/var/new/deep", createParentDirectories=False),
                partial(guest.MoveFileInGuest, "/var/new/moved", "/etc/passwd", overwrite=False),
            ],
            vim.fault.CannotAccessFile: [partial(ada.put, "/etc/passwd", b"")],
            vim.fault.NotAFile: [partial(guest.DeleteFileInGuest, "/var/new")],
            vim.fault.NotADirectory: [partial(guest.DeleteDirectoryInGuest, "/var/new/moved", recursive=True)],
            vim.fault.DirectoryNotEmpty: [partial(guest.DeleteDirectoryInGuest, "/var/new", recursive=False)],
        }
        for fault, calls in faults.items():
            for call in calls:
                with pytest.raises(fault):
                    call()
        guest.DeleteFileInGuest("/var/new/moved")
        guest.DeleteDirectoryInGuest("/var/new", recursive=True)
        assert guest.names("/var") == {".", ".."}


def test_streams_large_files(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        machine = clone(service, vsphere, "one")
        done(machine.PowerOn())
        guest = Guest(service, vsphere, machine)
        content = random.Random(1).randbytes(96 << 20)
        guest.put("/var/large", content)
        assert guest.get("/var/large") == content
        assert vsphere.process.memory_full_info().uss < 64 << 20


def test_reverts_to_snapshots(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        machine = clone(service, vsphere, "one")
        guest = Guest(service, vsphere, machine)
        done(machine.PowerOn())
        for path in ("/var/file", "/tmp/file"):
            guest.put(path, b"old")
        first = done(machine.CreateSnapshot("first", memory=True, quiesce=False))
        second = done(machine.CreateSnapshot("second", memory=False, quiesce=False))
        [tree] = machine.snapshot.rootSnapshotList
        assert [(tree.name, tree.state)] == [("first", "poweredOn")]
        assert [(child.name, child.state) for child in tree.childSnapshotList] == [("second", "poweredOff")]
        guest.put("/var/file", b"new")
        pid = guest.start("/bin/sleep", "1000")

        done(first.RevertToSnapshot_Task())
        assert machine.runtime.powerState == "poweredOn"
        assert (guest.get("/var/file"), guest.get("/tmp/file")) == (b"old", b"old")
        assert guest.ListProcessesInGuest([pid]) == []

        done(second.RevertToSnapshot_Task())
        assert machine.runtime.powerState == "poweredOff"
        done(machine.PowerOn())
        assert (guest.get("/var/file"), guest.names("/tmp")) == (b"old", {".", ".."})

        images = len(containers(vsphere).images())
        done(first.RemoveSnapshot_Task(removeChildren=False))
        assert len(containers(vsphere).images()) == images - 1
        done(machine.PowerOff())
        done(machine.Destroy())
        assert len(containers(vsphere).images()) == 1
        assert containers(vsphere).containers() == []


def test_stands_still_while_suspended(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        machine = clone(service, vsphere, "one")
        guest = Guest(service, vsphere, machine)
        done(machine.PowerOn())
        pid = guest.start("/bin/sleep", "2")
        done(machine.Suspend())
        with pytest.raises(vim.fault.InvalidPowerState):
            guest.ListProcessesInGuest([pid])
        assert "Paused" in containers(vsphere)("ps", "--all", "--format", "{{.State}}")
        done(machine.PowerOn())
        assert guest.exit_code(pid) == 0


@pytest.mark.parametrize("vsphere", ["esx"], indirect=True)
def test_creates_machines_where_none_can_be_cloned(vsphere: Simulator) -> None:
    with logged_in(vsphere) as service:
        with pytest.raises(vmodl.fault.NotSupported):
            clone(service, vsphere, "one")
        base = service.content.searchIndex.FindByInventoryPath(vsphere.base_machine)
        files = vim.vm.FileInfo(vmPathName=f"[{vsphere.datastore}]")
        spec = vim.vm.ConfigSpec(name="one", guestId="otherGuest64", files=files)
        machine = done(base.parent.CreateVM_Task(config=spec, pool=base.resourcePool))
        done(machine.PowerOn())
        guest = Guest(service, vsphere, machine)
        assert guest.exit_code(guest.start("/bin/sh", "-c 'exit 7'")) == 7


@pytest.mark.parametrize("is_killed", [False, True])
def test_leaves_nothing(tmp_path: Path, *, is_killed: bool) -> None:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path / "vsphere"
    with simulator(folder) as server, logged_in(server) as service:
        machine = clone(service, server, "one")
        done(machine.PowerOn())
        Guest(service, server, machine).start("/bin/sleep", "1000")
        assert str(folder) in Path("/proc/mounts").read_text()
        if is_killed:
            server.process.kill()
    assert str(folder) not in Path("/proc/mounts").read_text()
    assert [process for process in psutil.process_iter() if str(folder) in " ".join(command(process))] == []
    assert {path.name for path in folder.iterdir()} == {"cert.pem", "key.pem", "vcsim.log"}


def test_fails_as_networks_do(vsphere: Simulator) -> None:
    with cutting_proxy(vsphere.host, vsphere.port) as proxy, logged_in(vsphere, port=proxy.port) as service:
        machine = service.content.searchIndex.FindByInventoryPath(vsphere.machines[0])
        proxy.cut_after(100)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            machine.PowerOn()
        done(machine.PowerOn())
        proxy.refuse()
        proxy.cut()
        with pytest.raises((ConnectionError, ssl.SSLError)):
            machine.PowerOff()
        proxy.accept_again()
        proxy.delay_s = 0.1
        begun = time.monotonic()
        done(machine.PowerOff())
        assert time.monotonic() - begun > 0.2
        with socket.create_connection((proxy.host, proxy.port), timeout=0.5) as connection:
            proxy.is_stuck = True
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with pytest.raises(TimeoutError):
                connection.recv(1)
            proxy.is_stuck = False
            connection.settimeout(30)
            assert connection.recv(1) == b"H"  # which refuses that


def containers(server: Simulator) -> Podman:
    assert server.podman is not None
    return server.podman


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []
