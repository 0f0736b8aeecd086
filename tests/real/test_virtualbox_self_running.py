"""Jobs whose guest works by itself, run by the program `vmwrapper` in real guests of VirtualBox's."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.peers import virtualbox_linux
from tests.peers.virtualbox import Profile
from vmwrapper.clock import RunningClock
from vmwrapper.concurrency import beside
from vmwrapper.errors import SnapshotFailed
from vmwrapper.hypervisor.interface import Machine, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor
from vmwrapper.run_state import Reason, RunState

from .test_virtualbox_job import LIMIT_S, start, until_said, virtualbox

__all__ = ["virtualbox"]
pytestmark = pytest.mark.virtualbox_linux

COUNTS = 14
START = f"""\
cd /tmp
n=0
while [ $n -lt {COUNTS} ]; do
    n=$((n + 1))
    echo $n >>counted
    echo $n >/shared/beat
    echo "0.$((n + 10))" >/shared/fraction
    sleep 1
done
printf '20\\n0\\nno licence just now\\n' >/shared/later
while [ -e /shared/later ]; do sleep 1; done
cat /shared/in/put counted >/shared/out
printf '0\\n0\\nall is counted\\n' >/shared/done
poweroff -f
"""
TASK = """\
<vm>{image}</vm> <memory_mb>128</memory_mb> <data>start.sh</data>
<completion_trigger_file>done</completion_trigger_file> <checkpoint_interval>4</checkpoint_interval>
<heartbeat_filename>beat</heartbeat_filename> <minimum_heartbeat_interval>120</minimum_heartbeat_interval>
"""
REST = """\
<temporary_exit_trigger_file>later</temporary_exit_trigger_file>
<fraction_done_filename>fraction</fraction_done_filename>
<data>in/put</data> <output>out</output>
"""


def job(folder: Path, *, starts: str, rest: str = "") -> Path:
    (folder / "start.sh").write_text(starts)
    file = folder / "job.xml"
    task = TASK.format(image=virtualbox_linux.cd()) + rest
    file.write_text(f"<job_desc><task>\n{task}</task></job_desc>\n")
    return file


def ended(wrapper: subprocess.Popen[bytes], log: Path) -> int:
    """Its exit status. One that does not end is asked to, and what it and its guest have said is told."""
    try:
        return wrapper.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        consoles = [file.read_text(errors="replace") for file in log.parent.glob(".vmwrapper/*/console")]
        wrapper.terminate()
        wrapper.wait(LIMIT_S)
        pytest.fail(f"it did not end within {LIMIT_S} s\n{log.read_text()}\n{consoles}")


def test_goes_on_after_its_wrapper_was_killed_and_later_when_it_wants(virtualbox: Profile, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/put").write_bytes(b"0\n")
    file = job(tmp_path, starts=START, rest=REST)
    first, second, third = (tmp_path / f"{name}.log" for name in ("first", "second", "third"))

    wrapper = start(virtualbox, file, first)
    until_said(wrapper, first, "Checkpoint taken")
    assert (tmp_path / ".vmwrapper/shared/fraction").read_text().startswith("0.1")
    wrapper.kill()
    wrapper.wait()
    wrapper = start(virtualbox, file, second)
    assert ended(wrapper, second) == 75, second.read_text()
    assert "The guest goes on by itself" in second.read_text()
    assert "the guest wants to go on later: no licence just now" in second.read_text()

    began_s = time.monotonic()
    wrapper = start(virtualbox, file, third)
    assert ended(wrapper, third) == 0, third.read_text()
    print(f"from the last checkpoint to the end: {time.monotonic() - began_s:.1f} s")
    assert "all is counted" in third.read_text()
    assert (tmp_path / "out").read_text() == "".join(f"{number}\n" for number in range(COUNTS + 1))
    assert not (tmp_path / ".vmwrapper").exists()


def test_a_guest_that_just_powers_off_has_failed(virtualbox: Profile, tmp_path: Path) -> None:
    log = tmp_path / "log"
    wrapper = start(virtualbox, job(tmp_path, starts="echo sorry\npoweroff -f\n"), log)
    assert ended(wrapper, log) == 194, log.read_text()
    assert "the guest powered off before the task was done" in log.read_text()
    assert "sorry" in log.read_text()


WRITING = """\
n=0
while :; do
    exec 3>/shared/beat
    for second in 1 2 3 4 5 6 7 8; do
        n=$((n + 1))
        echo $n >&3
        sleep 0.1
    done
    exec 3>&-
    sleep 0.4
done
"""


@pytest.mark.asyncio
async def test_a_snapshot_has_no_file_open_that_the_guest_writes(
    virtualbox: Profile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Going back to one that has, Linux would try the next write to that file for ever."""
    for name in ("PATH", "VBOX_USER_HOME", "VBOX_IPC_SOCKETID"):
        monkeypatch.setenv(name, virtualbox.environment[name])
    hypervisor = VirtualBoxHypervisor()
    assert (await hypervisor.probe(RunningClock())).usable
    async with counting(hypervisor, tmp_path, WRITING) as (machine, beat):
        for _ in range(4):
            async with driven(machine) as run_state:
                await machine.take_snapshot(partial(run_state.held, Reason.CHECKPOINT), most_bytes=1 << 40)
                await changes(beat)
                newest = machine.snapshots[0]
                await machine.keep_snapshots([newest.number])
            await machine.revert(newest)
            await machine.resume()
            await changes(beat)
        await machine.pause()
        await machine.keep_snapshots([])
    async with counting(hypervisor, tmp_path, f"exec 4>/shared/open\n{WRITING}") as (machine, beat):
        async with driven(machine) as run_state:
            standing = partial(run_state.held, Reason.CHECKPOINT)
            with pytest.raises(SnapshotFailed, match=r"keeps (open|beat) open for writing"):
                await machine.take_snapshot(standing, most_bytes=1 << 40)
            await changes(beat)
            taking = asyncio.create_task(machine.take_snapshot(standing, most_bytes=1 << 40))
            await asyncio.sleep(1)
            run_state.hold(Reason.SUSPENDED)
            with pytest.raises(SnapshotFailed, match="keeps"):
                await taking
            was = beat.read_text()
            await asyncio.sleep(3)
            assert beat.read_text() == was
        assert machine.snapshots == []


@asynccontextmanager
async def driven(machine: Machine) -> AsyncIterator[RunState]:
    """One that runs, and is let run and stand as in a job."""
    run_state = RunState(RunningClock())
    async with beside(run_state.drive(machine)):
        yield run_state


@asynccontextmanager
async def counting(hypervisor: VirtualBoxHypervisor, folder: Path, script: str) -> AsyncIterator[tuple[Machine, Path]]:
    """A machine that runs the script, and the file in which it counts."""
    directory, shared = folder / "machine", folder / "shared"
    for each in (directory, shared):
        each.mkdir(exist_ok=True)
    beat = shared / "beat"
    beat.unlink(missing_ok=True)
    (shared / "start.sh").write_text(script)
    spec = MachineSpec(
        identity=MachineIdentity("test", "guest", str(directory)),
        image=virtualbox_linux.cd(),
        directory=directory,
        memory_mib=128,
        cpus=1,
        scratch_mib=0,
        shared=shared,
    )
    async with hypervisor.machine(spec, RunningClock()) as machine:
        await machine.power_on()
        while not beat.exists():
            await asyncio.sleep(0.1)
        yield machine, beat


async def changes(beat: Path) -> None:
    was = beat.read_text()
    async with asyncio.timeout(60):
        while beat.read_text() == was:
            await asyncio.sleep(0.1)
