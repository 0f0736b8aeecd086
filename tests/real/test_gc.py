"""`vmwrapper gc`, with what killed wrappers really leave: in QEMU next to nothing, in VirtualBox a lot."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.peers import boot_sector, virtualbox_chroot
from tests.peers.virtualbox import Profile, clean_profile
from vmwrapper.boinc.slot_lock import LOCK_FILE
from vmwrapper.folders import MACHINE_FOLDER, RECORD_FILE

from .test_job import LIMIT_S, VMWRAPPER

HOLDS = "import sys; from pathlib import Path; from vmwrapper.boinc.slot_lock import slot_lock\n"
HOLDS += "with slot_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
HEADLESS = ("-display", "none", "-machine", "none")
EPISODE = """\
import asyncio, sys
from contextlib import contextmanager
from pathlib import Path
from vmwrapper.boinc.slot_lock import slot_lock
from vmwrapper.checkpoint import Checkpoint, Reached, Record, read_record, write_record
from vmwrapper.clock import RunningClock
from vmwrapper.hypervisor.interface import MachineIdentity, MachineSpec
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor

slot, image, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
REACHED = Reached(cpu_time_s=1.0, elapsed_s=1.0, fraction_of_task=None, program_ran_s=1.0,
                  floating_point_operations=0.0, integer_operations=0.0, guest_cpu_time_s=0.0)

@contextmanager
def standing():
    yield

async def wait(is_reached):
    if is_reached:
        print(moment, flush=True)
        await asyncio.sleep(1000)

async def episode():
    hypervisor = VirtualBoxHypervisor()
    result = await hypervisor.probe(RunningClock())
    assert result.usable, result
    directory = slot / ".vmwrapper"
    directory.mkdir(exist_ok=True)
    record = read_record(slot)
    spec = MachineSpec(
        identity=MachineIdentity("project", "result", str(slot)), image=image, directory=directory,
        memory_mib=32, cpus=1, scratch_mib=16,
        snapshots=[checkpoint.snapshot for checkpoint in record.checkpoints] if record else [],
    )
    async with hypervisor.machine(spec, RunningClock()) as machine:
        await wait(moment == "created")
        if moment == "goes on":
            await machine.revert(machine.snapshots[0])
            await machine.resume()
        else:
            await machine.power_on()
        while "TICK 3" not in machine.console_tail and moment != "goes on":
            await asyncio.sleep(0.05)
        await wait(moment == "running")
        if moment == "checkpoint":
            await machine.take_snapshot(standing, most_bytes=1 << 40)
            checkpoint = Checkpoint(reached=REACHED, snapshot=machine.snapshots[0], backend="virtualbox")
            write_record(slot, Record(job="job", checkpoints=(checkpoint,)))
            await wait(True)
        while "TICK" not in machine.console_tail:
            await asyncio.sleep(0.05)
        print(machine.console_tail.split("\\n")[0], flush=True)
        await machine.keep_snapshots([])

with slot_lock(slot):
    asyncio.run(episode())
"""


def gc(*words: str, profile: Profile | None = None) -> list[dict[str, Any]]:
    """What it finds; it must not fail."""
    argv = [VMWRAPPER, "gc", "--json", "--backend", "virtualbox" if profile else "qemu", *words]
    environment = profile.environment if profile else None
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    return findings


@contextmanager
def held(slot: Path) -> Iterator[None]:
    """As by a wrapper at work."""
    argv = [sys.executable, "-c", HOLDS, slot]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield
        assert process.stdin
        process.stdin.close()


def wait_until(holds: Callable[[], object]) -> None:
    ends_at_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < ends_at_s
        time.sleep(0.05)


# QEMU


@pytest.fixture
def orphan() -> Iterator[Callable[..., psutil.Process]]:
    """Starts a QEMU of that name, whose parent is gone when it returns."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs QEMU: make setup")
    with ExitStack() as ends:

        def start(name: str, *prefix: str) -> psutil.Process:
            qemu = [*prefix, "qemu-system-x86_64", "-name", f"guest={name}", *HEADLESS]
            argv = ["sh", "-c", '"$@" >/dev/null 2>&1 & echo $!', "sh", *qemu]
            said = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, start_new_session=True).stdout
            process = psutil.Process(int(said))
            ends.callback(end, process)
            wait_until(lambda: process.cmdline()[1:2] == ["-name"])
            return process

        yield start


def end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()
    wait_until(lambda: not runs(process))


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended, be it reaped or not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.alone  # it looks at all of the host, and ends what another test may just have orphaned
@pytest.mark.qemu
def test_an_orphaned_qemu_is_shown_and_ended(tmp_path: Path, orphan: Callable[..., psutil.Process]) -> None:
    slots = [tmp_path / name for name in ("dead", "a,live", "gone")]
    for slot in slots[:2]:
        (slot / MACHINE_FOLDER).mkdir(parents=True)
    dead, live, gone = (orphan(f"vmwrapper test result {slot}".replace(",", ",,")) for slot in slots)
    foreign = orphan(f"foreign vmwrapper test result {slots[0]}")
    argv = ["qemu-system-x86_64", "-name", f"guest=vmwrapper test child {slots[0]}", *HEADLESS]
    with held(slots[1]), subprocess.Popen(argv) as child, ExitStack() as ends:
        ends.callback(child.kill)
        ours = [(finding["slot"], finding["state"]) for finding in gc() if str(tmp_path) in finding["slot"]]
        assert sorted(ours) == [(str(slots[0]), "would remove"), (str(slots[2]), "would remove")]
        assert all(map(runs, (dead, live, gone)))
        assert (slots[0] / MACHINE_FOLDER).exists()

        ours = [(finding["slot"], finding["files"]) for finding in gc("--yes") if str(tmp_path) in finding["slot"]]
        assert sorted(ours) == [(str(slots[0]), "removed"), (str(slots[2]), "none")]
        assert list(map(runs, (dead, live, gone, foreign))) == [False, True, False, True]
        assert child.poll() is None  # who has started it is there
    assert [(slot / MACHINE_FOLDER).exists() for slot in slots] == [False, True, False]
    (slots[1] / MACHINE_FOLDER).rmdir()


@pytest.mark.alone  # it looks at all of the host, and ends what another test may just have orphaned
@pytest.mark.qemu
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_users_qemu_is_not_ours(tmp_path: Path, orphan: Callable[..., psutil.Process]) -> None:
    process = orphan(f"vmwrapper test result {tmp_path / 'gone'}", "setpriv", "--reuid=65534", "--clear-groups", "--")
    assert [finding for finding in gc("--yes") if str(tmp_path) in finding["slot"]] == []
    assert runs(process)


# VirtualBox


@pytest.fixture
def virtualbox(tmp_path: Path) -> Iterator[Profile]:
    """A profile of its own. Fails a test that leaves anything registered, or a machine running."""
    if reason := boot_sector.missing() or virtualbox_chroot.missing():
        pytest.skip(reason)
    with clean_profile(tmp_path / "virtualbox") as profile:
        yield profile


@pytest.fixture
def image() -> Path:
    """A disk of the guest that counts."""
    if reason := boot_sector.missing():
        pytest.skip(reason)
    return boot_sector.disk(boot_sector.boot_sector(timer_ticks=1), "vdi")


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Path]:
    slot = tmp_path / "slot"
    slot.mkdir()
    yield slot
    (slot / LOCK_FILE).unlink(missing_ok=True)  # a killed wrapper leaves it


@contextmanager
def episode(profile: Profile, slot: Path, image: Path, moment: str) -> Iterator[subprocess.Popen[str]]:
    """A wrapper that has come to that moment, and is killed at the end."""
    argv = [sys.executable, "-c", EPISODE, slot, image, moment]
    with subprocess.Popen(argv, env=profile.environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == f"{moment}\n"
            yield process
        finally:
            process.kill()
    wait_until(lambda: profile.machines() == [])


def killed(profile: Profile, slot: Path, image: Path, moment: str) -> None:
    with episode(profile, slot, image, moment):
        pass


def everything(profile: Profile, slot: Path) -> tuple[list[str], list[str], set[Path]]:
    return profile.vms(), profile.hdds(), set(slot.rglob("*"))


@pytest.mark.virtualbox
@pytest.mark.parametrize("moment", ["created", "running"])
def test_what_a_killed_episode_leaves_is_shown_and_removed(
    virtualbox: Profile, slot: Path, image: Path, moment: str
) -> None:
    killed(virtualbox, slot, image, moment)
    before = everything(virtualbox, slot)
    [finding] = gc(profile=virtualbox)
    assert (finding["state"], finding["slot"], finding["files"]) == ("would remove", str(slot), "removed")
    assert everything(virtualbox, slot) == before

    [finding] = gc("--yes", profile=virtualbox)
    assert (finding["state"], finding["slot"], finding["files"]) == ("removed", str(slot), "removed")
    assert everything(virtualbox, slot) == ([], [], set())
    assert image.exists()
    assert gc("--yes", profile=virtualbox) == []


@pytest.mark.virtualbox
def test_a_machine_that_runs_without_its_wrapper_is_ended(virtualbox: Profile, slot: Path, image: Path) -> None:
    (link := slot.with_name("link")).symlink_to(slot)  # as where a client's slots are on another disk
    killed(virtualbox, link, image, "created")
    uuid = virtualbox.vms()[0][-37:-1]
    argv = [virtualbox.vboxmanage.with_name("VBoxHeadless"), "--startvm", uuid, "--vrde", "off"]
    with subprocess.Popen(argv, env=virtualbox.environment, stdout=subprocess.DEVNULL) as process:
        wait_until(virtualbox.machines)
        assert "which runs" in gc(profile=virtualbox)[0]["what"]
        gc("--yes", profile=virtualbox)
        assert process.wait(LIMIT_S) != 0
    assert everything(virtualbox, slot) == ([], [], set())


@pytest.mark.virtualbox
def test_live_and_foreign_machines_stay(virtualbox: Profile, slot: Path, image: Path, tmp_path: Path) -> None:
    name = "vmwrapper of somebody"
    virtualbox.must("createvm", "--name", name, "--basefolder", tmp_path / MACHINE_FOLDER, "--register")
    virtualbox.must("modifyvm", name, "--description", f"vmwrapper project result {tmp_path}")
    disk = tmp_path / "foreign.vdi"
    virtualbox.must("createmedium", "disk", "--filename", disk, "--size", "1")
    with episode(virtualbox, slot, image, "running") as wrapper:
        machines = virtualbox.machines()
        assert gc("--yes", profile=virtualbox) == []
        assert virtualbox.machines() == machines
        assert wrapper.poll() is None
        assert len(virtualbox.vms()) == 2
    [finding] = gc("--yes", profile=virtualbox)
    assert finding["slot"] == str(slot)
    assert [vm[1 : len(name) + 1] for vm in virtualbox.vms()] == [name]
    assert virtualbox.hdds() == [str(disk)]
    virtualbox.must("closemedium", "disk", disk)
    virtualbox.must("unregistervm", name, "--delete")
    shutil.rmtree(tmp_path / MACHINE_FOLDER, ignore_errors=True)


@pytest.mark.virtualbox
@pytest.mark.parametrize("service", ["running on", "started anew"])
def test_a_machine_whose_slot_is_gone_is_removed(virtualbox: Profile, slot: Path, image: Path, service: str) -> None:
    killed(virtualbox, slot, image, "running")
    while slot.exists():
        shutil.rmtree(slot, ignore_errors=True)  # VirtualBox may just write into it
    if service == "started anew":  # that is when it reads settings
        virtualbox.end()
        assert "<inaccessible>" in virtualbox.vms()[0]
    [finding] = gc(profile=virtualbox)
    assert (finding["slot"], finding["files"]) == (str(slot), "none")
    assert finding["what"].endswith("whose files are gone")
    [finding] = gc("--yes", profile=virtualbox)
    assert finding["state"] == "removed"
    assert everything(virtualbox, slot) == ([], [], set())
    assert not slot.exists()


@pytest.mark.virtualbox
def test_a_machine_with_a_checkpoint_keeps_its_files_and_goes_on(virtualbox: Profile, slot: Path, image: Path) -> None:
    killed(virtualbox, slot, image, "checkpoint")
    files = set(slot.rglob("*.vdi")) | set(slot.rglob("*.sav"))
    [finding] = gc("--yes", profile=virtualbox)
    assert (finding["state"], finding["files"]) == ("removed", "kept")
    assert everything(virtualbox, slot)[:2] == ([], [])
    assert {*slot.rglob("*.vdi"), *slot.rglob("*.sav")} == files
    argv = [sys.executable, "-c", EPISODE, slot, image, "goes on"]
    done = subprocess.run(
        argv, env=virtualbox.environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "BOOT" not in done.stdout
    (slot / RECORD_FILE).unlink()
    shutil.rmtree(slot / MACHINE_FOLDER)


@pytest.mark.virtualbox
def test_disks_without_a_machine_are_forgotten(virtualbox: Profile, slot: Path, image: Path) -> None:
    """As of an episode that was killed while it made its machine."""
    folder = slot / MACHINE_FOLDER / "vmwrapper result 01234567"
    folder.mkdir(parents=True)
    virtualbox.must("createmedium", "disk", "--filename", folder / "root.vdi", "--format=VDI", "--diffparent", image)
    virtualbox.must("createmedium", "disk", "--filename", folder / "scratch.vdi", "--size", "1")
    with held(slot):
        assert gc("--yes", profile=virtualbox) == []
    [finding] = gc(profile=virtualbox)
    assert "disks of machine vmwrapper result 01234567" in finding["what"]
    assert len(virtualbox.hdds()) == 3
    gc("--yes", profile=virtualbox)
    assert everything(virtualbox, slot) == ([], [], set())


@pytest.mark.virtualbox
def test_a_trial_is_left_alone_as_long_as_somebody_tries(virtualbox: Profile, tmp_path: Path) -> None:
    folder, name = tmp_path / "vmwrapper-trial-x", "vmwrapper trial 7c7e0b9c-5d5a-4c3e-8f52-0d1a34a1c111"
    folder.mkdir()
    virtualbox.must("createvm", "--name", name, "--basefolder", folder, "--register")
    with held(folder):
        assert gc("--yes", profile=virtualbox) == []
    [finding] = gc("--yes", profile=virtualbox)
    assert (finding["state"], finding["files"]) == ("removed", "removed")
    assert not folder.exists()


@pytest.mark.virtualbox
def test_where_virtualbox_is_broken_it_says_so(tmp_path: Path) -> None:
    manage = tmp_path / "VBoxManage"
    manage.write_text("#!/bin/sh\necho 'VBoxManage: error: broken' >&2\nexit 1\n")
    manage.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    argv = [VMWRAPPER, "gc", "--backend", "virtualbox"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 75
    assert done.stdout.startswith("not removed: what virtualbox may have: ")
    assert "broken" in done.stdout
    assert len(done.stdout.splitlines()) == 1
