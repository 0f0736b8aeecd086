"""What the client wants is done within a second whatever the wrapper is at, as the host's processes show."""

import asyncio
import io
import os
import random
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from vmwrapper.folders import RECORD_FILE
from vmwrapper.job.reader import read_job
from vmwrapper.twin.app import app_command
from vmwrapper.twin.client import REAL_PACE, ClientTwin
from vmwrapper.twin.files import job_files
from vmwrapper.twin.slot import SLOT_FOLDER, TwinSlot, twin_slot

from .test_job import job, task, write_job

pytestmark = pytest.mark.qemu

OBEYED_WITHIN_S = 1.0
CHECKPOINT_S = 4.0
BOOT_LIMIT_S = 30.0
PHASE_LIMIT_S = 120.0
TIME_LIMIT_S = 15.0
COMPUTED_S = 4
LARGE_MIB, MADE_MIB = 384, 256
PACKED_FILES = 800
PACKED_BYTES = 40_000

Cpu = dict[psutil.Process, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What the wrapper is at, and how to know it."""

    name: str
    chapter: str = ""
    """What it has just said."""
    helper: str = ""
    """Otherwise: a word of the command line of what it has just started."""
    later_s: float = 0.0
    job: str = ""
    """Which of the jobs is quit and aborted in it, if one is."""
    suspended_s: float = 2.0
    """For how long it is suspended in it."""


PHASES = [
    Phase(name="probe", helper="-accel kvm", job="quick", suspended_s=3.0),
    Phase(name="boot", chapter="Machine is on", later_s=0.3, job="quick", suspended_s=BOOT_LIMIT_S + 1),
    Phase(name="start", chapter="Copying in input small.sh", job="quick"),
    Phase(name="run", chapter="Running the program", later_s=0.3, job="quick", suspended_s=TIME_LIMIT_S),
    Phase(name="removal", chapter="removing small.sh", job="two"),
    Phase(name="install", chapter="Installing package many.tar.gz", later_s=0.5, job="package"),
    Phase(name="copying in", chapter="Copying in input large", later_s=0.5, job="large"),
    Phase(name="fetching", chapter="Copying out output back", later_s=0.3, job="made"),
    Phase(name="cleaning up", chapter="removing many.tar.gz", later_s=0.5),
]
HAS_KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
OUTPUTS = {"small", "back"}
SMALL = task("small.sh", f"<output>small</output><time_limit>{TIME_LIMIT_S}</time_limit>")
LARGE = "<output>back</output><disk_mb>2500</disk_mb>"
PACKAGE = "<package>many.tar.gz</package>"
QUICK = task("small.sh", "<output>small</output><setenv>SECONDS=1</setenv>")
JOBS = {
    "quick": job(QUICK),
    "two": job(QUICK, task("made.sh")),  # so that the app outlives the first machine
    "package": job(task("small.sh", PACKAGE)),
    "large": job(task("large.sh", LARGE, "<data>large</data>")),
    "made": job(task("made.sh", LARGE)),
    "all": job(SMALL, task("large.sh", LARGE, "<data>large</data>", PACKAGE)),
}
# A paused guest's uptime stands still.
COMPUTE = f"""\
now() {{ cut -d. -f1 /proc/uptime; }}
begin=$(now)
while [ $(now) -lt $((begin + ${{SECONDS:-{COMPUTED_S}}})) ]; do :; done
echo $(($(now) - begin)) >small"""


@pytest.fixture(scope="module")
def large_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    block = random.randbytes(1 << 20)
    with (folder / "large").open("wb") as file:
        for _ in range(LARGE_MIB):
            file.write(block)
    with tarfile.open(folder / "many.tar.gz", "w:gz", compresslevel=1) as package:
        content = bytes(random.choices(b"acgt", k=PACKED_BYTES))
        for number in range(PACKED_FILES):
            packed = tarfile.TarInfo(f"opt/many/{number}")
            packed.size = PACKED_BYTES
            package.addfile(packed, io.BytesIO(content))
    return folder


@pytest.fixture
def project(tmp_path: Path, large_files: Path, default_image: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the job's files, on a host where nothing is known yet of its accelerator."""
    images = tmp_path / "cache/images"
    images.mkdir(parents=True)
    (images / "default.vmguest").symlink_to(default_image)
    monkeypatch.setenv("VMWRAPPER_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "project"
    folder.mkdir()
    for file in large_files.iterdir():
        (folder / file.name).hardlink_to(file)
    made = f"dd if=/dev/zero of=back bs=1M count={MADE_MIB}"
    write_job(folder, "", small=COMPUTE, large="mv large back", made=made)
    return folder


@asynccontextmanager
async def client_of(
    project: Path, job_text: str, *options: str
) -> AsyncIterator[tuple[ClientTwin, TwinSlot, "asyncio.Task[int]"]]:
    """A client that runs the job, and the task whose result is the job's exit status."""
    job_file = project / "job.xml"
    job_file.write_text(job_text)
    with twin_slot(job_files(read_job(job_file), job_file, image_suffixes=[])) as slot:
        client = ClientTwin(slot, command=app_command(options), tells_pid=True, show=lambda _: None, pace=REAL_PACE)
        async with asyncio.TaskGroup() as group:
            yield client, slot, group.create_task(client.run())


async def in_phase(phase: Phase, client: ClientTwin) -> None:
    await client.runs.wait()
    async with asyncio.timeout(PHASE_LIMIT_S):
        if phase.chapter:
            await client.said(phase.chapter)
        else:
            while not any(phase.helper in " ".join(words(process)) for process in helpers(client)):
                await asyncio.sleep(0.02)
    await asyncio.sleep(phase.later_s)


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def helpers(client: ClientTwin) -> list[psutil.Process]:
    """All that the app has started and that runs."""
    assert client.app is not None
    try:
        return [each for each in psutil.Process(client.app.pid).children(recursive=True) if lives(each)]
    except psutil.NoSuchProcess:
        return []


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def cpu_times_s(processes: list[psutil.Process]) -> Cpu:
    found = {}
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found[process] = times.user + times.system
    return found


async def stands_still(client: ClientTwin, *, for_s: float) -> None:
    """Fail unless nothing that the app has started computes, ends or begins; the app itself may do a little."""
    assert client.app is not None
    app = psutil.Process(client.app.pid)
    before, before_app = cpu_times_s(helpers(client)), cpu_times_s([app])
    await asyncio.sleep(for_s)
    after, after_app = cpu_times_s(helpers(client)), cpu_times_s([app])
    assert after.keys() == before.keys(), "a helper program ended or began"
    assert max((after[each] - before[each] for each in after), default=0) <= 0.02, "a helper program computed"
    assert after_app[app] - before_app[app] <= 0.1 * for_s, "the wrapper computed"


async def test_suspend_is_obeyed_in_every_phase(project: Path) -> None:
    """One job is suspended in each of its phases, and ends right."""
    async with client_of(project, JOBS["all"], "--boot-limit", str(BOOT_LIMIT_S)) as (client, _, ending):
        for phase in PHASES if HAS_KVM else PHASES[1:]:
            await in_phase(phase, client)
            client.suspend("test")
            await asyncio.sleep(OBEYED_WITHIN_S)
            try:
                await stands_still(client, for_s=phase.suspended_s - OBEYED_WITHIN_S)
            except AssertionError as error:
                raise AssertionError(f"suspended in the phase: {phase.name}") from error
            client.resume("test")
    assert ending.result() == 0
    assert (project / "small").read_text() in (f"{COMPUTED_S}\n", f"{COMPUTED_S + 1}\n")
    assert (project / "back").read_bytes() == (project / "large").read_bytes()
    assert len(client.episodes) == 1


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase.job], ids=lambda phase: phase.name)
async def test_quit_and_abort_are_obeyed(project: Path, phase: Phase) -> None:
    if phase.helper and not HAS_KVM:
        pytest.skip("needs /dev/kvm, which may be dead")
    async with client_of(project, JOBS[phase.job]) as (client, slot, ending):
        before = names(project)
        for way in (client.quit, client.abort):
            await in_phase(phase, client)
            takes_checkpoint = phase.name == "run" and way == client.quit
            await all_is_gone(client, way, within_s=OBEYED_WITHIN_S + takes_checkpoint * CHECKPOINT_S)
            assert slot.left_by_app() == []
            (slot.path / RECORD_FILE).unlink(missing_ok=True)  # the task may have been done by then
            client.start()
            (project.parent / "cache/accelerator-kvm.json").unlink(missing_ok=True)
    assert ending.result() == 203
    assert names(project) <= before - {SLOT_FOLDER} | OUTPUTS


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def all_is_gone(client: ClientTwin, way: Callable[[], Awaitable[None]], *, within_s: float) -> None:
    assert client.app is not None
    processes = [psutil.Process(client.app.pid), *helpers(client)]
    asked_at = time.monotonic()
    asking = asyncio.ensure_future(way())
    while any(map(lives, processes)):
        await asyncio.sleep(0.01)
    lasted_s = time.monotonic() - asked_at
    await asking
    assert lasted_s < within_s
