"""How soon the guest does what the client wants, and what a job costs that is suspended."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from vmwrapper.boinc.channels import Channel
from vmwrapper.folders import image_folder
from vmwrapper.job.reader import read_job
from vmwrapper.twin.app import app_command
from vmwrapper.twin.client import REAL_PACE, ClientTwin
from vmwrapper.twin.files import job_files
from vmwrapper.twin.slot import TwinSlot, twin_slot

from .figure import Figure, rounds

REQUESTS = 200
STANDS_STILL_S = 0.1
LOOK_S = 0.001
SUSPENDED_S = 60.0
LIMITED_S = 60
SUSPEND, RESUME = "<suspend/>\n", "<resume/>\n"


class BusyJob:
    """A job whose program computes without end, under a twin of the client; requests go past the twin's own period."""

    def __init__(self, slot: TwinSlot, processes: list[psutil.Process]) -> None:
        self._slot = slot
        self._processes = processes
        [machine] = [process for process in processes if process.name().startswith("qemu-system")]
        threads = [thread / "schedstat" for thread in Path(f"/proc/{machine.pid}/task").iterdir()]
        self._processor = max(threads, key=_computed_s)

    async def want(self, request: str) -> None:
        while not self._slot.memory.send(Channel.PROCESS_CONTROL_REQUEST, request):
            await asyncio.sleep(LOOK_S)

    def computed_s(self) -> float:
        """CPU time of the machine's one processor, to the nanosecond."""
        return _computed_s(self._processor)

    def cost_s(self) -> float:
        """CPU time of wrapper and machine."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self._processes))

    async def stands_still(self) -> float:
        """When it last computed, as soon as that is long ago."""
        last, last_s = self.computed_s(), time.monotonic()
        while time.monotonic() - last_s < STANDS_STILL_S:
            await asyncio.sleep(LOOK_S)
            if (now := self.computed_s()) - last > LOOK_S / 4:
                last, last_s = now, time.monotonic()
        return last_s

    async def runs_on(self) -> float:
        """When it computes again."""
        before = self.computed_s()
        while self.computed_s() - before < LOOK_S:
            await asyncio.sleep(LOOK_S)
        return time.monotonic()


def _computed_s(schedstat: Path) -> float:
    return int(schedstat.read_text().split()[0]) / 1e9


@asynccontextmanager
async def busy_job(folder: Path) -> AsyncIterator[BusyJob]:
    (folder / "busy.sh").write_text("while :; do :; done\n")
    job_file = folder / "job.xml"
    job_file.write_text("<job_desc><task><vm>default</vm><innerjob>busy.sh</innerjob></task></job_desc>")
    with twin_slot(job_files(read_job(job_file), job_file, image_suffixes=[])) as slot:
        client = ClientTwin(slot, command=app_command([]), tells_pid=True, show=lambda _: None, pace=REAL_PACE)
        async with asyncio.TaskGroup() as group:
            group.create_task(client.run())
            await client.said("Running the program")
            assert client.app
            app = psutil.Process(client.app.pid)
            yield BusyJob(slot, [app, *app.children(recursive=True)])
            await client.abort()


def measure_requests(folder: Path) -> list[Figure]:
    assert image_folder().exists()
    return asyncio.run(_measured(folder))


async def _measured(folder: Path) -> list[Figure]:
    async with busy_job(folder) as job:
        await asyncio.sleep(5)
        stopping, going = await _reaction_times(job)
        share = await _share(job)
        await job.want(SUSPEND)
        await asyncio.sleep(2)
        before_s = job.cost_s()
        await asyncio.sleep(SUSPENDED_S)
        suspended_s = job.cost_s() - before_s
    return [
        Figure("request to standstill, p50", "s", [_percentile(stopping, 50)]),
        Figure("request to standstill, p99", "s", [_percentile(stopping, 99)], aim=1.0),
        Figure("resume to running on, p50", "s", [_percentile(going, 50)], aim=0.05),
        Figure("resume to running on, p99", "s", [_percentile(going, 99)]),
        Figure("CPU time of a suspended job in 60 s", "s", [suspended_s], aim=0.05),
        Figure("share under a CPU limit of 50 %", "of 1", [share], aim=0.48, more_is_better=True),
    ]


async def _reaction_times(job: BusyJob) -> tuple[list[float], list[float]]:
    stopping, going = [], []
    for _ in rounds(REQUESTS, "suspend and resume"):
        await asyncio.sleep(random.uniform(0.05, 0.25))
        stopping.append(await _reaction_s(job, SUSPEND, job.stands_still))
        await asyncio.sleep(random.uniform(0, 0.1))
        going.append(await _reaction_s(job, RESUME, job.runs_on))
    return stopping, going


async def _reaction_s(job: BusyJob, request: str, happened: Callable[[], Awaitable[float]]) -> float:
    wanted_s = time.monotonic()
    await job.want(request)
    return await happened() - wanted_s


async def _share(job: BusyJob) -> float:
    """As the client does it: a second each."""
    before_s, began_s = job.computed_s(), time.monotonic()
    for _ in rounds(LIMITED_S // 2, "CPU limit"):
        await job.want(SUSPEND)
        await asyncio.sleep(1)
        await job.want(RESUME)
        await asyncio.sleep(1)
    return (job.computed_s() - before_s) / (time.monotonic() - began_s)


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
