"""The story of one episode: a job file's tasks, one after the other, each in a machine of its own."""

import asyncio
import logging
import math
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from vmwrapper.boinc.api import AppApi, Request
from vmwrapper.checkpoint import Record, count_try, fingerprint, last_record, read_record, record_of_end, remove_record
from vmwrapper.checkpointer import Checkpointer
from vmwrapper.clock import RunningClock, next_second
from vmwrapper.concurrency import beside, to_thread_and_back
from vmwrapper.errors import AbortRequested, HostDiskFailed, JobError, QuitRequested, TemporaryFailure, VmwrapperError
from vmwrapper.exit_status import ExitStatus
from vmwrapper.folders import MACHINE_FOLDER, remove_tree
from vmwrapper.hypervisor.interface import Hypervisor, Login, Machine, MachineIdentity, MachineSpec
from vmwrapper.hypervisor.registry import Registry, Wanted, needs_of, why_unfit
from vmwrapper.job.model import Job, Task
from vmwrapper.job.reader import read_job
from vmwrapper.job.resolve import ResolvedTask, resolve_job
from vmwrapper.keeper import Keeper
from vmwrapper.limits import FULL_DISK, check_disk, check_memory, cpu_cap_percent, disk_use_bytes, niceness
from vmwrapper.machine_run import Kept
from vmwrapper.progress import TRICKLE_VARIETY, Progress, credit_message, expected_s, status_of_end
from vmwrapper.run_state import Reason, RunState
from vmwrapper.self_run import SelfRun, shared_folder
from vmwrapper.shared_folder import SharedFolder
from vmwrapper.task_run import TaskRun

log = logging.getLogger(__name__)

BOOT_LIMIT_S = 300.0
CREDIT_TRICKLE_S = 3600.0
DISK_LOOK_S = 10.0
_NOT_DONE = "stopped on request; the job is not done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a person may want of a run that the job file doesn't say."""

    backend: str | None = None
    """Overrides the job's own choice."""
    boot_limit_s: float = BOOT_LIMIT_S
    trickle_period_s: float | None = None
    """How often the server is told of the CPU time by a trickle-up, in running time."""
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
        self._leaving = asyncio.Event()
        self._checkpointer: Checkpointer | None = None
        self._outputs: Sequence[Path] = ()
        """Of all tasks."""

    async def run(self, job_file: Path) -> None:
        """Run the whole job. Raises VmwrapperError for whatever kept it from its end."""
        try:
            await self._run(job_file)
        except AbortRequested:
            await to_thread_and_back(_remove, self._machine_folder)
            raise

    @property
    def _machine_folder(self) -> Path:
        return self._api.slot / MACHINE_FOLDER

    async def _run(self, job_file: Path) -> None:
        async with beside(self._obey(), self._leave()), self._api.episode():
            try:
                await self._run_job(job_file)
            except TemporaryFailure as failure:
                if self._api.restarts:
                    count_try(self._api.slot, failure, ran_s=self._run_state.clock.elapsed_s)
                raise
            except VmwrapperError:
                self._forget()
                raise
            self._forget()

    def _forget(self) -> None:
        """By hand, the next run is another one. A client removes the slot, or starts us again to hear of the end."""
        _remove(self._machine_folder)
        if not self._api.restarts:
            remove_record(self._api.slot)

    async def _run_job(self, job_file: Path) -> None:
        job = read_job(job_file)
        if await self._was_done(job_file, job):
            return
        earlier = _earlier_backends(read_record(self._api.slot), len(job.tasks))
        backends = [await self._choose(task, backend) for task, backend in zip(job.tasks, earlier, strict=True)]
        tasks = resolve_job(
            job,
            job_file,
            self._api.resolve,
            slot=self._api.slot,
            project_dir=self._api.project_dir,
            image_suffixes=[backend.image_suffixes for backend in backends],
        )
        self._outputs = [file for task in tasks for file in task.outputs.values()]
        made_of = await to_thread_and_back(fingerprint, job_file, tasks)
        record = last_record(self._api.slot, made_of, tasks, self._api.init_data)
        progress = Progress(
            [task.weight for task in job.tasks],
            record,
            self._run_state.clock,
            expected_s=expected_s(self._api.init_data),
        )
        async with beside(self._report(progress), self._trickle(job, progress), self._watch_disk()):
            for number, (task, backend) in enumerate(zip(tasks, backends, strict=True), start=1):
                if number > record.tasks_done:
                    log.info("Processing task %d of %d: %s", number, len(tasks), task.task.title)
                    await self._run_task(task, backend, progress, is_last=number == len(tasks))
        self._api.report(progress.status())

    async def _was_done(self, job_file: Path, job: Job) -> bool:
        """Whether an earlier episode did it all, and only didn't come to say so. A person wants it done once more."""
        record = record_of_end(self._api.slot, job_file, len(job.tasks))
        if record is None:
            return False
        if not self._api.restarts:
            remove_record(self._api.slot)
            return False
        log.info("The job was done by an earlier episode")
        await to_thread_and_back(_remove, self._machine_folder)
        self._api.report(status_of_end(record))
        return True

    async def _choose(self, task: Task, earlier: str | None) -> Hypervisor:
        """`earlier` is the hypervisor that has checkpoints of it."""
        if self._options.keep and task.self_running:
            raise JobError("--keep is for a look into a guest by commands, and one that works by itself takes none")
        check_memory(task.memory_mib, self._api.init_data.rsc_memory_bound_bytes)
        wanted = Wanted(
            name=self._options.backend or task.backend,
            earlier=earlier,
            needs=needs_of(task),
            unfit=partial(why_unfit, task, self._api.resolve),
        )
        return await self._registry.choose(wanted, self._run_state.clock)

    async def _run_task(
        self, resolved: ResolvedTask, hypervisor: Hypervisor, progress: Progress, *, is_last: bool
    ) -> None:
        task = resolved.task
        log.info("VM image %s: %s", task.vm, resolved.image)
        cap_percent = cpu_cap_percent(self._api.init_data)
        if cap_percent < 100 and not hypervisor.abilities.cpu_cap:
            log.warning("%s can't hold the machine to %d %% of the processors' time", hypervisor.name, cap_percent)
        if any(checkpoint.backend != hypervisor.name for checkpoint in progress.checkpoints):
            log.warning("The task begins anew: its checkpoints are not %s's", hypervisor.name)
            progress.begin_anew()
        async with self._folder_of_machine(progress) as directory:
            shared = shared_folder(resolved, directory) if task.self_running else None
            if shared:
                await to_thread_and_back(shared.make)
            spec = MachineSpec(
                identity=MachineIdentity(self._api.project, self._api.result_name, str(self._api.slot)),
                image=resolved.image,
                directory=directory,
                memory_mib=task.memory_mib,
                cpus=task.cpus,
                scratch_mib=0 if shared else task.scratch_mib,
                niceness=niceness(self._api.init_data) if self._api.restarts else None,
                cpu_cap_percent=cap_percent,
                snapshots=[checkpoint.snapshot for checkpoint in progress.checkpoints],
                shared=shared.path if shared else None,
                login=Login(task.user, task.password) if task.password else None,
            )
            async with hypervisor.machine(spec, self._run_state.clock) as machine:
                log.info("Machine created: %d MiB, %d CPU(s)", task.memory_mib, task.cpus)
                progress.cpu_time.begin_task(machine.cpu_time_s, basis=task.cpu_time_basis, cpus=task.cpus)
                progress.machine_bytes = machine.working_set_bytes
                self._checkpointer = self._checkpointer_of(resolved, hypervisor, machine, progress)
                kept = partial(self._keeper.kept, task, machine, directory, progress, is_last=is_last)
                await self._run_in(resolved, machine, shared, progress, kept if self._options.keep else None)
            progress.cpu_time.end_task()

    async def _run_in(
        self,
        resolved: ResolvedTask,
        machine: Machine,
        shared: SharedFolder | None,
        progress: Progress,
        kept: Kept | None,
    ) -> None:
        wants = resolved.task.self_running
        if wants and shared:
            self_run = SelfRun(
                resolved,
                wants,
                machine,
                self._checkpointer,
                shared=shared,
                slot=self._api.slot,
                run_state=self._run_state,
                progress=progress,
                boot_limit_s=self._options.boot_limit_s,
                notify=self._api.notify,
            )
            await self_run.run()
            return
        run = TaskRun(
            resolved,
            machine,
            self._checkpointer,
            slot=self._api.slot,
            run_state=self._run_state,
            progress=progress,
            boot_limit_s=self._options.boot_limit_s,
        )
        await run.run(kept=kept)

    @asynccontextmanager
    async def _folder_of_machine(self, progress: Progress) -> AsyncIterator[Path]:
        """The folder for the length of the block; only what a checkpoint needs is there at first, and stays."""
        folder = self._machine_folder
        try:
            await to_thread_and_back(_make_folder, folder, not progress.checkpoints)
            yield folder
        finally:
            if not await to_thread_and_back(_has_checkpoints, self._api.slot):
                await to_thread_and_back(_remove, folder)

    def _checkpointer_of(
        self, resolved: ResolvedTask, hypervisor: Hypervisor, machine: Machine, progress: Progress
    ) -> Checkpointer | None:
        if not hypervisor.abilities.memory_snapshots:
            log.info("%s saves no guest's memory: a restart will begin this task anew", hypervisor.name)
            return None
        return Checkpointer(
            machine,
            resolved.task,
            backend=hypervisor.name,
            api=self._api,
            run_state=self._run_state,
            progress=progress,
            outputs=self._outputs,
        )

    async def _obey(self) -> NoReturn:
        """Do what the client wants, at any moment."""
        async for request in self._api.requests():
            match request:
                case Request.SUSPEND:
                    self._run_state.hold(Reason.SUSPENDED)
                case Request.RESUME:
                    self._run_state.release(Reason.SUSPENDED)
                case Request.QUIT:
                    if self._leaving.is_set():
                        raise QuitRequested(_NOT_DONE)
                    if not self._keeper.let_go():
                        self._leaving.set()
                case Request.ABORT:
                    raise AbortRequested("aborted on request")
        raise AssertionError  # the requests have no end

    async def _leave(self) -> NoReturn:
        """Stop when the client wants it, with what has been done so far in a checkpoint."""
        await self._leaving.wait()
        if self._checkpointer:
            await self._checkpointer.take_last()
        raise QuitRequested(_NOT_DONE)

    async def _report(self, progress: Progress) -> NoReturn:
        while True:
            self._api.report(progress.status())
            await next_second()
            await self._run_state.may_run()  # a client wants no status meanwhile, and each look costs

    async def _trickle(self, job: Job, progress: Progress) -> None:
        """Tell the server now and then what it may give credit for."""
        reports_credit = any(task.partial_credit for task in job.tasks)
        period_s = self._options.trickle_period_s or (CREDIT_TRICKLE_S if reports_credit else math.inf)
        periods_told = progress.elapsed_s // period_s
        while True:
            await next_second()
            await self._run_state.may_run()
            if progress.elapsed_s // period_s > periods_told:
                periods_told = progress.elapsed_s // period_s
                message = credit_message(progress.status(), progress.elapsed_s)
                try:
                    await self._api.send_trickle_up(TRICKLE_VARIETY, message)
                except (TimeoutError, HostDiskFailed) as error:
                    log.warning("A trickle-up is not sent: %s", str(error) or "the client has not taken the last one")

    async def _drop_checkpoint(self) -> bool:
        return self._checkpointer is not None and await self._checkpointer.drop_oldest()

    async def _watch_disk(self) -> NoReturn:
        while True:
            await self._run_state.may_run()
            bound_bytes = self._api.init_data.rsc_disk_bound_bytes
            used_bytes = await asyncio.to_thread(disk_use_bytes, self._api.slot, self._outputs)
            if bound_bytes and used_bytes > bound_bytes * FULL_DISK and await self._drop_checkpoint():
                continue
            check_disk(used_bytes, bound_bytes)
            await asyncio.sleep(DISK_LOOK_S)


def run_episode(job_file: Path, api: AppApi, registry: Registry, options: Options) -> int:
    """Run a job file's job from start to end, and return the exit status for the process."""

    async def story() -> None:
        await Episode(api, registry, options).run(job_file)

    try:
        asyncio.run(story())
    except VmwrapperError as error:
        status = api.end(error)
        if status and api.restarts:
            log.info("Exit status %d: %s", status, ExitStatus.meaning_of(status))
        return status
    return api.end(None)


def _has_checkpoints(slot: Path) -> bool:
    """Whether the next episode may go on from one, also by a record that can't be read just now."""
    try:
        record = read_record(slot)
    except HostDiskFailed:
        return True
    return record is not None and bool(record.checkpoints)


def _remove(folder: Path) -> None:
    remove_tree(folder)


def _earlier_backends(record: Record | None, tasks: int) -> Sequence[str | None]:
    """For each task, the hypervisor that an earlier episode has left checkpoints of it with."""
    backends: list[str | None] = [None] * tasks
    if record and record.checkpoints and record.tasks_done < tasks:
        backends[record.tasks_done] = record.checkpoints[0].backend
    return backends


def _make_folder(path: Path, is_emptied: bool) -> None:  # noqa: FBT001  (a thread's)
    try:
        if is_emptied and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.mkdir(mode=0o700, exist_ok=not is_emptied and not path.is_symlink())
    except OSError as error:
        raise HostDiskFailed(f"can't make an empty directory {path}: {error.strerror}") from error
