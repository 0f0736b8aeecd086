"""For tests that run real programs: what they need, and that nothing of theirs stays behind."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from vmwrapper.checkpoint import read_record
from vmwrapper.clock import RunningClock
from vmwrapper.folders import MACHINE_FOLDER, RECORD_FILE, image_folder
from vmwrapper.hypervisor.interface import Machine, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor

from . import debian_disk as debian


@pytest.fixture
def default_image() -> Path:
    """The guest that `make setup` builds."""
    image = image_folder() / "default.vmguest"
    if shutil.which("qemu-system-x86_64") is None or not image.exists():
        pytest.skip("needs QEMU and the default guest: make setup")
    return image


@pytest.fixture
def debian_disk() -> Path:
    """A disk with a small Debian that boots by itself, in qcow2 format; not to be changed."""
    if reason := debian.missing():
        pytest.skip(reason)
    return debian.debian_disk()


@pytest_asyncio.fixture
async def machine(default_image: Path, tmp_path: Path) -> AsyncIterator[Machine]:
    """A machine with the default guest, which takes commands; its scratch disk of 64 MiB is not yet made."""
    directory = tmp_path / "machine"
    directory.mkdir()
    hypervisor = QemuHypervisor()
    assert (await hypervisor.probe(RunningClock())).usable
    spec = MachineSpec(
        identity=MachineIdentity("test", "machine", str(directory)),
        image=default_image,
        directory=directory,
        memory_mib=256,
        cpus=1,
        scratch_mib=64,
    )
    async with hypervisor.machine(spec, RunningClock()) as machine:
        await machine.power_on()
        await machine.guest.ready(limit_s=60)
        yield machine


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Fail a test that leaves a process, an open descriptor or a file of the wrapper's."""
    descriptors = _open_descriptors()
    yield
    machines, children = _machines_of(tmp_path), psutil.Process().children(recursive=True)
    for process in children:
        process.kill()  # so that only this test fails
    psutil.wait_procs(children, timeout=5)
    assert machines == []
    assert children == []
    assert _open_descriptors() <= descriptors
    assert left_behind(tmp_path) == []


def left_behind(folder: Path) -> list[str]:
    """The wrapper's files in there, but for what the next run goes on from."""
    found = [path for path in folder.rglob("*") if path.name.startswith((".vmwrapper", "boinc_"))]
    return [str(path) for path in found if not _is_for_next_run(path)]


def _is_for_next_run(path: Path) -> bool:
    if path.name not in (RECORD_FILE, MACHINE_FOLDER):
        return False
    record = read_record(path.parent)
    return record is not None and bool(record.checkpoints)


def _machines_of(folder: Path) -> list[list[str]]:
    """Command lines of QEMU processes for slots in a folder, whoever their parent is."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(word.startswith("guest=vmwrapper ") and str(folder) in word for word in words):
            found.append(words)
    return found


def _open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
