"""The story of one episode: a job file's tasks, one after the other, each in a machine of its own."""

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vmwrapper.boinc.api import AppApi, Request
from vmwrapper.clock import RunningClock, next_second
from vmwrapper.concurrency import beside
from vmwrapper.errors import AbortRequested, HostDiskFailed, QuitRequested, VmwrapperError
from vmwrapper.folders import MACHINE_FOLDER
from vmwrapper.hypervisor.interface import Hypervisor, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.registry import Registry
from vmwrapper.job.reader import read_job
from vmwrapper.job.resolve import ResolvedTask, resolve_job
from vmwrapper.keeper import Keeper
from vmwrapper.progress import Progress
from vmwrapper.run_state import Reason, RunState
from vmwrapper.task_run import TaskRun

log = logging.getLogger(__name__)

BOOT_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a person may want of a run that the job file doesn't say."""

    backend: str | None = None
    """Overrides the job's own choice."""
    boot_limit_s: float = BOOT_LIMIT_S
    keep: bool = False
    """Leave the machine in which the job ended for a look, until the request to quit."""


class Episode:
    """One run of the wrapper on one job."""

    def __init__(self, api: AppApi, registry: Registry, options: Options) -> None:
        self._api = api
        self._registry = registry
        self._options = options
        self._run_state = RunState(RunningClock())
        self._keeper = Keeper()

    async def run(self, job_file: Path) -> None:
        """Run the whole job. Raises VmwrapperError for whatever kept it from its end."""
        async with beside(self._obey()), self._api.episode():
            job = read_job(job_file)
            backends = [
                await self._registry.choose(self._options.backend or task.backend, self._run_state.clock)
                for task in job.tasks
            ]
            suffixes = [backend.image_suffixes for backend in backends]
            tasks = resolve_job(
                job,
                job_file,
                self._api.resolve,
                slot=self._api.slot,
                project_dir=self._api.project_dir,
                image_suffixes=suffixes,
            )
            progress = Progress([task.weight for task in job.tasks])
            async with beside(self._report(progress)):
                for number, (task, backend) in enumerate(zip(tasks, backends, strict=True), start=1):
                    log.info("Processing task %d of %d: %s", number, len(tasks), task.task.innerjob)
                    await self._run_task(task, backend, progress, is_last=number == len(tasks))
            self._api.report(progress.status())

    async def _run_task(
        self, resolved: ResolvedTask, hypervisor: Hypervisor, progress: Progress, *, is_last: bool
    ) -> None:
        task = resolved.task
        log.info("VM image %s: %s", task.vm, resolved.image)
        with _empty_folder(self._api.slot / MACHINE_FOLDER) as directory:
            spec = MachineSpec(
                identity=MachineIdentity(self._api.project, self._api.result_name, str(self._api.slot)),
                image=resolved.image,
                directory=directory,
                memory_mib=task.memory_mib,
                cpus=task.cpus,
                scratch_mib=task.scratch_mib,
            )
            async with hypervisor.machine(spec, self._run_state.clock) as machine:
                log.info("Machine created: %d MiB, %d CPU(s)", task.memory_mib, task.cpus)
                progress.follow(machine.cpu_time_s)
                run = TaskRun(
                    resolved,
                    machine,
                    run_state=self._run_state,
                    progress=progress,
                    boot_limit_s=self._options.boot_limit_s,
                )
                keep = self._options.keep
                kept = self._keeper.kept(task, machine, directory, progress, is_last=is_last) if keep else None
                await run.run(kept=kept)

    async def _obey(self) -> NoReturn:
        """Do what the client wants, at any moment."""
        async for request in self._api.requests():
            match request:
                case Request.SUSPEND:
                    self._run_state.hold(Reason.SUSPENDED)
                case Request.RESUME:
                    self._run_state.release(Reason.SUSPENDED)
                case Request.QUIT:
                    if not self._keeper.let_go():
                        raise QuitRequested("stopped on request; the job is not done")
                case Request.ABORT:
                    raise AbortRequested("aborted on request")
        raise AssertionError  # the requests have no end

    async def _report(self, progress: Progress) -> NoReturn:
        while True:
            self._api.report(progress.status())
            await next_second()


def run_episode(job_file: Path, api: AppApi, registry: Registry, options: Options) -> int:
    """Run a job file's job from start to end, and return the exit status for the process."""

    async def story() -> None:
        await Episode(api, registry, options).run(job_file)

    try:
        asyncio.run(story())
    except VmwrapperError as error:
        return api.end(error)
    return api.end(None)


@contextmanager
def _empty_folder(path: Path) -> Iterator[Path]:
    """An empty folder for the length of the block, whatever an earlier episode left there."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.mkdir(mode=0o700)
    except OSError as error:
        raise HostDiskFailed(f"can't make an empty directory {path}: {error.strerror}") from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
