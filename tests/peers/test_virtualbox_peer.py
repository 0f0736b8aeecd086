"""What the tests with VirtualBox stand on: the programs, the guest of one sector, and a profile that is left clean."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from . import boot_sector
from .virtualbox import Profile

pytestmark = pytest.mark.virtualbox

LIMIT_S = 60
NAME = "peer"


def wait_until(holds: Callable[[], object]) -> None:
    ends_at_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < ends_at_s
        time.sleep(0.05)


def create(profile: Profile, folder: Path, image: Path, *, kind: str = "hdd") -> Path:
    """A machine of that image; the file that its serial port is written to."""
    serial = folder / "serial"
    profile.must("createvm", "--name", NAME, "--basefolder", folder, "--register")
    profile.must(
        *("modifyvm", NAME, "--vm-execution-engine=interpreter", "--memory=32", "--audio-enabled=off"),
        *("--uart1=0x3f8", "4", "--uart-mode1", "file", serial),
    )
    profile.must("storagectl", NAME, "--name=IDE", "--add=ide", "--controller=PIIX4")
    profile.must(
        "storageattach", NAME, "--storagectl=IDE", "--port=0", "--device=0", f"--type={kind}", "--medium", image
    )
    return serial


def copy(image: Path, folder: Path) -> Path:
    return Path(shutil.copy(image, folder / f"disk{image.suffix}"))


def start(profile: Profile) -> None:
    profile.must("startvm", NAME, "--type=headless")


def power_off(profile: Profile) -> None:
    profile.must("controlvm", NAME, "poweroff")
    wait_until(lambda: profile.machines() == [])


def remove(profile: Profile) -> None:
    profile.must("unregistervm", NAME, "--delete")


def lines(serial: Path) -> list[str]:
    return serial.read_text().splitlines() if serial.exists() else []


def numbers(serial: Path, word: str) -> list[int]:
    return [int(number) for number in re.findall(rf"^{word} (\d+)$", serial.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("suffix", ["vdi", "vmdk", "vhd"])
def test_guest_counts_on_its_disk(virtualbox: Profile, tmp_path: Path, suffix: str) -> None:
    sector = boot_sector.boot_sector(timer_ticks=2, powers_off_at=5)
    serial = create(virtualbox, tmp_path, copy(boot_sector.disk(sector, suffix), tmp_path))
    start(virtualbox)
    wait_until(lambda: virtualbox.machines() == [])
    assert virtualbox.state(NAME) == "poweroff"
    expected = ["BOOT 0", *(line for n in range(1, 6) for line in (f"TICK {n}", f"DISK {n - 1}"))]
    assert lines(serial) == expected
    start(virtualbox)
    wait_until(lambda: lines(serial)[:3] == ["BOOT 5", "TICK 6", "DISK 5"])
    power_off(virtualbox)
    remove(virtualbox)


def test_guest_counts_without_a_disk(virtualbox: Profile, tmp_path: Path) -> None:
    image = boot_sector.cd(boot_sector.boot_sector(timer_ticks=1, powers_off_at=3))
    serial = create(virtualbox, tmp_path, image, kind="dvddrive")
    start(virtualbox)
    wait_until(lambda: virtualbox.machines() == [])
    assert lines(serial) == ["BOOT ", "TICK 1", "TICK 2", "TICK 3"]
    remove(virtualbox)
    virtualbox.must("closemedium", "dvd", image)


def test_triple_fault(virtualbox: Profile, tmp_path: Path) -> None:
    image = boot_sector.disk(boot_sector.boot_sector(timer_ticks=1, crashes_at=3), "vdi")
    serial = create(virtualbox, tmp_path, copy(image, tmp_path))
    start(virtualbox)
    wait_until(lambda: virtualbox.state(NAME) == "gurumeditation")
    assert lines(serial)[-2:] == ["TICK 3", "DISK 2"]
    power_off(virtualbox)
    remove(virtualbox)


@pytest.mark.parametrize("rests", [True, False])
def test_cpu_time_of_a_guest(virtualbox: Profile, tmp_path: Path, *, rests: bool) -> None:
    image = boot_sector.disk(boot_sector.boot_sector(timer_ticks=1, rests=rests), "vdi")
    serial = create(virtualbox, tmp_path, copy(image, tmp_path))
    start(virtualbox)
    wait_until(lambda: "TICK 2" in lines(serial))
    (process,) = virtualbox.machines()
    before, at_s = sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(1)
    share = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - at_s)
    assert share < 0.3 if rests else share > 0.3
    power_off(virtualbox)
    remove(virtualbox)


def test_snapshot_outlives_a_killed_machine(virtualbox: Profile, tmp_path: Path) -> None:
    """Memory and disk are both those of the snapshot, and go on from there."""
    image = boot_sector.disk(boot_sector.boot_sector(timer_ticks=1), "vdi")
    serial = create(virtualbox, tmp_path, copy(image, tmp_path))
    start(virtualbox)
    wait_until(lambda: "TICK 5" in lines(serial))
    virtualbox.must("snapshot", NAME, "take", "safe", "--live")
    snapped_at = numbers(serial, "TICK")[-1]
    wait_until(lambda: numbers(serial, "TICK")[-1] > snapped_at + 10)
    (process,) = virtualbox.machines()
    process.kill()
    wait_until(lambda: virtualbox.state(NAME) == "aborted")
    serial.unlink()
    virtualbox.must("snapshot", NAME, "restorecurrent")
    start(virtualbox)
    wait_until(lambda: len(lines(serial)) > 4)
    assert not any(line.startswith("BOOT") for line in lines(serial))
    # The snapshot may be of the moment between a tick's two lines.
    whole = lines(serial)[lines(serial)[0].startswith("DISK") :]
    first = numbers(serial, "TICK")[0]
    assert 5 < first <= snapped_at + 1
    assert whole[:2] == [f"TICK {first}", f"DISK {first - 1}"]
    power_off(virtualbox)
    remove(virtualbox)


def test_program_is_the_process_that_was_started(virtualbox: Profile, tmp_path: Path) -> None:
    image = boot_sector.disk(boot_sector.boot_sector(timer_ticks=1), "vdi")
    serial = create(virtualbox, tmp_path, copy(image, tmp_path))
    words = ("--startvm", NAME, "--vrde", "off")
    argv = [virtualbox.vboxmanage.with_name("VBoxHeadless"), *words]
    with subprocess.Popen(argv, env=virtualbox.environment, stdout=subprocess.PIPE) as process:
        wait_until(lambda: lines(serial))
        assert [machine.pid for machine in virtualbox.machines()] == [process.pid]
        assert psutil.Process(process.pid).cmdline()[-len(words) :] == list(words)
        virtualbox.must("controlvm", NAME, "poweroff")
        said, _ = process.communicate(timeout=LIMIT_S)
    assert b"VirtualBox Headless Interface" in said
    remove(virtualbox)


def test_nothing_stays_mounted(virtualbox: Profile) -> None:
    before = Path("/proc/self/mounts").read_text()
    assert virtualbox.vms() == []
    assert Path("/proc/self/mounts").read_text() == before


def test_profiles_do_not_see_each_other(virtualbox: Profile, tmp_path: Path) -> None:
    other = Profile(tmp_path / "other")
    create(virtualbox, tmp_path, copy(boot_sector.disk(boot_sector.boot_sector(), "vdi"), tmp_path))
    assert virtualbox.vms() != []
    assert other.vms() == []
    assert {process.pid for process in virtualbox.processes()}.isdisjoint(process.pid for process in other.processes())
    argv = [virtualbox.vboxmanage, "guestproperty", "wait", NAME, "*"]  # it ends with the server, which waits for it
    with subprocess.Popen(argv, env=virtualbox.environment) as waiting:
        assert virtualbox.vms() != []
        other.end()
        assert other.processes() == []
        assert virtualbox.vms() != []
        assert waiting.poll() is None
        waiting.kill()
    remove(virtualbox)


def test_processes_of_a_profile_leave_out_ours(virtualbox: Profile) -> None:
    virtualbox.vms()
    names = {process.name() for process in virtualbox.processes()}
    assert names <= {"VBoxSVC", "VBoxXPCOMIPCD"}
    assert os.getpid() not in {process.pid for process in virtualbox.processes()}
