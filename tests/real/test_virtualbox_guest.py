"""Commands and files in a real guest of VirtualBox's, beyond what all hypervisors have in common."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.peers import virtualbox_linux
from tests.peers.virtualbox import Profile, clean_profile
from vmwrapper.clock import RunningClock
from vmwrapper.errors import GuestError, JobError, MachineExited, OutputChanged, OutputTooLarge, VmwrapperError
from vmwrapper.hypervisor import refusals
from vmwrapper.hypervisor.interface import FileKind, Guest, Login, Machine, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor
from vmwrapper.hypervisor.virtualbox.guestcontrol import GuestControl
from vmwrapper.hypervisor.virtualbox.place import place_of
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage

pytestmark = [pytest.mark.virtualbox_linux, pytest.mark.asyncio(loop_scope="module")]

LIMIT_S = 90.0
BOOT_LIMIT_S = 300.0
PLENTY = 1 << 40
LOGIN = Login(virtualbox_linux.USER, virtualbox_linux.PASSWORD)
NAMES = ["plain", "-rf", "two\nlines\n", "ünïcödé ☃", "'quoted' \\ $HOME `x` *", "in/a/folder", " "]


@contextmanager
def standing() -> Iterator[None]:
    yield


@pytest.fixture(scope="module")
def virtualbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Profile]:
    if reason := virtualbox_linux.missing():
        pytest.skip(reason)
    with clean_profile(tmp_path_factory.mktemp("virtualbox")) as profile, pytest.MonkeyPatch.context() as patch:
        for name in ("PATH", "VBOX_USER_HOME", "VBOX_IPC_SOCKETID"):
            patch.setenv(name, profile.environment[name])
        yield profile


@pytest.fixture(autouse=True)
def nothing_left(virtualbox: Profile) -> None:
    """The profile sees to that, when all tests have had the machine."""


def identity_in(directory: Path) -> MachineIdentity:
    return MachineIdentity("test", "guest", str(directory))


def spec_in(directory: Path, login: Login | None) -> MachineSpec:
    return MachineSpec(
        identity=identity_in(directory),
        image=virtualbox_linux.cd(),
        directory=directory,
        memory_mib=160,
        cpus=1,
        scratch_mib=0,
        login=login,
    )


@pytest.fixture(scope="module")
def machine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(virtualbox: Profile, machine_folder: Path) -> AsyncIterator[Machine]:
    """One that was ready when its snapshot was taken, for commands of a user who is not root."""
    hypervisor = VirtualBoxHypervisor()
    assert (await hypervisor.probe(RunningClock())).usable
    async with hypervisor.machine(spec_in(machine_folder, LOGIN), RunningClock()) as machine:
        await machine.power_on()
        await machine.guest.ready(limit_s=BOOT_LIMIT_S)
        await machine.take_snapshot(standing, most_bytes=PLENTY)
        yield machine
        await machine.keep_snapshots([])


@pytest.fixture
def guest(machine: Machine) -> Guest:
    return machine.guest


def host_files(folder: Path, contents: dict[str, bytes]) -> dict[str, Path]:
    files = {name: folder / f"input {number}" for number, name in enumerate(contents)}
    for name, path in files.items():
        path.write_bytes(contents[name])
    return files


async def sh(guest: Guest, script: str) -> bytes:
    result = await guest.run(["sh", "-c", script], limit_s=LIMIT_S)
    assert result.status == 0, result
    return result.stdout


async def test_commands_are_root_s_with_their_exact_status(guest: Guest) -> None:
    result = await guest.run(["sh", "-c", 'id -u; cat >&2; exit "$1"', "sh", "93"], stdin=b"\0in\xff", limit_s=LIMIT_S)
    assert (result.status, result.stdout, result.stderr) == (93, b"0\n", b"\0in\xff")


async def test_a_signal_is_told_as_a_shell_does(guest: Guest) -> None:
    assert (await guest.run(["sh", "-c", "kill -KILL $$"], limit_s=LIMIT_S)).status == 128 + 9


async def test_words_arrive_as_they_are(guest: Guest) -> None:
    words = ["", "a b", 'it\'s "quoted" \\ $HOME', "two\nlines\n", "☃", "*"]
    result = await guest.run(["printf", "%s|", *words], limit_s=LIMIT_S)
    assert result.stdout.decode() == "".join(f"{word}|" for word in words)


async def test_64_kib_in_and_out(guest: Guest) -> None:
    said = random.Random(1).randbytes(64 * 1024)
    assert (await guest.run(["cat"], stdin=said, limit_s=LIMIT_S)).stdout == said


async def test_more_output_than_there_may_be(guest: Guest) -> None:
    with pytest.raises(GuestError, match="more than 524288 bytes"):
        await guest.run(["dd", "if=/dev/zero", "bs=1024", "count=600"], limit_s=LIMIT_S)


async def test_an_unknown_command(guest: Guest) -> None:
    with pytest.raises(GuestError, match="no-such-command"):
        await guest.run(["no-such-command"], limit_s=LIMIT_S)


async def test_looks(guest: Guest) -> None:
    assert await guest.read("/etc/passwd", limit_bytes=6) == b"root:x"
    assert await guest.read("/etc/nothing", limit_bytes=6) is None
    assert await guest.tail("/etc/passwd", limit_bytes=8) == b"/bin/sh\n"
    assert await guest.tail("/etc", limit_bytes=8) is None


async def test_names_arrive_as_they_are(guest: Guest, tmp_path: Path) -> None:
    contents = {name: name.encode() for name in NAMES}
    await sh(guest, "mkdir -p /tmp/names")
    await guest.put(host_files(tmp_path, contents), "/tmp/names")
    places = {name: tmp_path / f"output {number}" for number, name in enumerate(NAMES)}
    kinds = await guest.get("/tmp/names", places, limit_bytes=1000)
    assert set(kinds.values()) == {FileKind.REGULAR}
    assert {name: place.read_bytes() for name, place in places.items()} == contents


async def test_large_files_and_small_ones(guest: Guest, tmp_path: Path) -> None:
    sizes = {"empty": 0, "small": 1000, "large": (9 << 20) + 1}
    contents = {name: random.Random(size).randbytes(size) for name, size in sizes.items()}
    files = host_files(tmp_path, contents)
    files["large"].chmod(0o755)
    await sh(guest, "mkdir -p /tmp/sizes")
    await guest.put(files, "/tmp/sizes")
    names = [*sizes, "missing"]
    places = {name: tmp_path / f"to {name}" for name in names}
    with pytest.raises(OutputTooLarge):
        await guest.get("/tmp/sizes", places, limit_bytes=9 << 20)
    kinds = await guest.get("/tmp/sizes", places, limit_bytes=10 << 20)
    assert kinds["missing"] is FileKind.MISSING
    assert {name: (tmp_path / f"to {name}").read_bytes() for name in sizes} == contents
    assert [os.access(tmp_path / f"to {name}", os.X_OK) for name in sizes] == [os.geteuid() == -1, False, True]
    assert await sh(guest, "ls -A /tmp/sizes; rm -r /tmp/sizes") == b"empty\nlarge\nsmall\n"


async def test_a_file_that_grows(guest: Guest, tmp_path: Path) -> None:
    await sh(guest, "(while :; do echo x; done >/tmp/grows) >/dev/null 2>&1 & echo $! >/tmp/grows.pid")
    with pytest.raises(OutputChanged):
        await guest.get("/tmp", {"grows": tmp_path / "grows"}, limit_bytes=PLENTY)
    await sh(guest, "kill $(cat /tmp/grows.pid); rm /tmp/grows")


async def test_a_directory_that_is_not_there_and_a_full_disk(guest: Guest, tmp_path: Path) -> None:
    files = host_files(tmp_path, {"file": bytes(2 << 20)})
    with pytest.raises(GuestError, match=r"/no/such"):
        await guest.put(files, "/no/such")
    await sh(guest, "mkdir /tmp/full && mount -t tmpfs -o size=1m full /tmp/full")
    with pytest.raises(VmwrapperError):
        await guest.put(files, "/tmp/full")


async def test_a_guest_that_went_back_is_followed_again(machine: Machine) -> None:
    for _ in range(3):
        await sh(machine.guest, "touch /tmp/later")
        await machine.revert(machine.snapshots[0])
        await machine.resume()
        assert await machine.guest.read("/tmp/later", limit_bytes=1) is None


async def test_the_password_is_seen_by_nobody(virtualbox: Profile, machine_folder: Path, machine: Machine) -> None:
    place = place_of(identity_in(machine_folder), machine_folder)
    control = GuestControl(VBoxManage(virtualbox.vboxmanage), place, LOGIN, RunningClock())
    call = asyncio.create_task(control.start_agent(limit_s=LIMIT_S))
    seen = set()
    while not call.done():
        await asyncio.sleep(0.1)
        for process in psutil.Process().children(recursive=True):
            try:
                seen |= {*process.cmdline(), *process.environ().values()}
            except psutil.Error:
                continue
    await call
    assert "--passwordfile" in seen
    assert not [word for word in seen if virtualbox_linux.PASSWORD in word]
    await sh(machine.guest, "[ $(grep -c vmwrapper-answers /proc/mounts) -eq 1 ]")  # it was there already


async def test_a_machine_that_does_not_run(virtualbox: Profile, machine: Machine) -> None:
    await machine.power_off()
    with pytest.raises(MachineExited):
        await machine.guest.run(["true"], limit_s=LIMIT_S)


async def test_who_may_not_log_in(virtualbox: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_LIMIT_S", 0.5)
    hypervisor = VirtualBoxHypervisor()
    assert (await hypervisor.probe(RunningClock())).usable
    async with hypervisor.machine(spec_in(tmp_path, Login("root", "wrong")), RunningClock()) as machine:
        await machine.power_on()
        with pytest.raises(JobError, match="does not let root log in"):
            await machine.guest.ready(limit_s=BOOT_LIMIT_S)
