"""One machine of each hypervisor for the tests that leave it as it is, and the makings of others."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.peers import boot_sector, virtualbox_chroot, virtualbox_linux, vmrun_stand_in, vsphere
from tests.peers.virtualbox import clean_profile
from vmwrapper.clock import RunningClock
from vmwrapper.folders import image_folder
from vmwrapper.hypervisor.interface import Guest, Hypervisor, Login, Machine, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.memory.backend import IMAGE

from .subjects import (
    MemorySubject,
    QemuSubject,
    Subject,
    VirtualBoxLinuxSubject,
    VirtualBoxSubject,
    VmrunSubject,
    VsphereSubject,
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each hypervisor passes all tests of what it is able to do."""
    if "subject" in metafunc.fixturenames:
        able = [pytest.param("memory"), pytest.param("qemu", marks=pytest.mark.qemu)]
        if metafunc.definition.get_closest_marker("guest_commands") is None:
            able.append(pytest.param("virtualbox", marks=pytest.mark.virtualbox))
        elif metafunc.module.__name__.endswith("test_guest_contract"):  # in others each test boots: 30 s without VT
            able.append(pytest.param("virtualbox with Linux", marks=pytest.mark.virtualbox_linux))
        if _suits_simulators(metafunc):
            able += [pytest.param("vsphere", marks=pytest.mark.vcsim), pytest.param("vmrun")]
        metafunc.parametrize("subject", able, indirect=True, scope="module")


def _suits_simulators(metafunc: pytest.Metafunc) -> bool:
    """VMware's keep no memory in snapshots. A look at what their guests counted takes as long as a short pause."""
    if metafunc.module.__name__.endswith("test_guest_contract"):
        return True
    return (
        metafunc.module.__name__.endswith("test_hypervisor_contract")
        and metafunc.definition.get_closest_marker("guest_commands") is None
        and metafunc.definition.name != "test_nothing_happens_in_a_paused_guest"  # see test_vsphere_machine.py
    )


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    match request.param:
        case "memory":
            yield _memory(tmp_path_factory.mktemp("images"))
        case "qemu":
            yield _qemu()
        case "virtualbox":
            with _virtualbox(tmp_path_factory.mktemp("virtualbox"), boot_sector.missing):
                yield VirtualBoxSubject()
        case "virtualbox with Linux":
            with _virtualbox(tmp_path_factory.mktemp("virtualbox"), virtualbox_linux.missing):
                yield VirtualBoxLinuxSubject()
        case "vsphere":
            if reason := vsphere.missing():
                pytest.skip(reason)
            with vsphere.server(tmp_path_factory.mktemp("vsphere") / "server") as server:
                yield VsphereSubject(server)
        case "vmrun":
            if reason := vmrun_stand_in.missing():
                pytest.skip(reason)
            subject = VmrunSubject(tmp_path_factory.mktemp("vmrun") / "home")
            yield subject
            vmrun_stand_in.end_all(subject.home)


def _memory(folder: Path) -> Subject:
    image = folder / "guest.memory"
    image.write_bytes(IMAGE)
    return MemorySubject(image)


def _qemu() -> Subject:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    image = image_folder() / "default.vmguest"
    if not image.is_file():
        pytest.skip(f"there is no {image}: make it with `vmwrapper image build`")
    return QemuSubject(image)


@contextmanager
def _virtualbox(folder: Path, guest_missing: Callable[[], str | None]) -> Iterator[None]:
    if reason := guest_missing() or virtualbox_chroot.missing():
        pytest.skip(reason)
    with clean_profile(folder) as profile, pytest.MonkeyPatch.context() as patch:
        for name in ("PATH", "VBOX_USER_HOME", "VBOX_IPC_SOCKETID"):
            patch.setenv(name, profile.environment[name])
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hypervisor(subject: Subject) -> Hypervisor:
    hypervisor = subject.hypervisor()
    assert (await hypervisor.probe(RunningClock())).usable
    return hypervisor


def make_spec(image: Path, directory: Path, login: Login | None) -> MachineSpec:
    return MachineSpec(
        identity=MachineIdentity("contract", "result", str(directory)),
        image=image,
        directory=directory,
        memory_mib=128,
        cpus=1,
        scratch_mib=64,
        login=login,
    )


@pytest.fixture
def spec(subject: Subject, tmp_path: Path) -> MachineSpec:
    """Of a machine that one test has for itself."""
    directory = tmp_path / "machine"
    directory.mkdir()
    return make_spec(subject.image, directory, subject.login)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(
    subject: Subject, hypervisor: Hypervisor, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Machine]:
    """A machine that is up, shared by all tests of a module."""
    spec = make_spec(subject.image, tmp_path_factory.mktemp("machine"), subject.login)
    async with hypervisor.machine(spec, RunningClock()) as machine:
        await machine.power_on()
        await subject.up(machine, limit_s=subject.boots_within_s)
        yield machine


@pytest.fixture
def guest(machine: Machine) -> Guest:
    return machine.guest
