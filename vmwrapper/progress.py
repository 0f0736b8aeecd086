"""How far the job is, over all its tasks and episodes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import psutil

from vmwrapper.boinc.api import Operations, Status
from vmwrapper.boinc.init_data import InitData
from vmwrapper.checkpoint import Checkpoint, Reached, Record
from vmwrapper.clock import RunningClock
from vmwrapper.cpu_time import CpuTime
from vmwrapper.errors import RevertedMachineExited

_STRAIGHT_TO = 0.8
_MOST_OF_TASK = 0.999
"""Before it is done, whoever says so."""
_UNKNOWN_JOB_S = 3600.0
_TRIES_EACH = 4
_LEAST_CHANGE_S = 0.001
"""Of the CPU time at a checkpoint, or the client sees none."""
TRICKLE_VARIETY = "cpu_time"
"""Of the messages to the project's server. Source: as below."""
_NOTHING = Operations(floating_point=0.0, integer=0.0)


def estimated_fraction(elapsed_s: float, expected_s: float) -> float:
    """How much of a task may be done after so long; below 1 however long it takes.

    It goes straight on for most of the expected time, and then ever more slowly.
    """
    share = elapsed_s / expected_s
    if share <= _STRAIGHT_TO:
        return share
    rest = 1 - _STRAIGHT_TO
    return min(1 - rest / (1 + (share - _STRAIGHT_TO) / rest), _MOST_OF_TASK)


def expected_s(client: InitData) -> float | None:
    """How long the client's project expects the job to run here, or None where it doesn't say that."""
    speed = client.host_info.p_fpops * max(client.ncpus, 1)
    return client.rsc_fpops_est / speed if speed and client.rsc_fpops_est else None


def credit_message(status: Status, elapsed_s: float) -> str:
    """What the project's server is told of what the job has cost so far.

    Source: BOINC's sched/trickle_credit.cpp reads `<runtime>`, where samples/wrapper/wrapper.cpp sends `<cpu_time>`.
    """
    figures = {"cpu_time": status.cpu_time_s, "runtime": elapsed_s}
    if status.operations:
        figures |= {"fpops": status.operations.floating_point, "intops": status.operations.integer}
    return "".join(f"<{name}>{value:f}</{name}>\n" for name, value in figures.items())


def status_of_end(record: Record) -> Status:
    """What there is to tell of a job that an earlier episode did."""
    return Status(
        fraction_done=1.0,
        cpu_time_s=record.cpu_time_s,
        activity="done",
        checkpoint_cpu_time_s=record.cpu_time_s,
        operations=record.operations,
    )


class Progress:
    """Adds up what the tasks have done and used. Nothing that it tells ever falls within an episode."""

    def __init__(
        self, weights: Sequence[float], record: Record, clock: RunningClock, *, expected_s: float | None = None
    ) -> None:
        """`record` is of earlier episodes; `expected_s` how long the whole job should run, where anybody says that."""
        self.activity = "starting"
        self.cpu_time = CpuTime(record.cpu_time_s, clock)
        self.machine_bytes: Callable[[], int] = int
        """Tells the memory of the machine that there is just now."""
        self._own = psutil.Process()
        self._weights = weights
        self._clock = clock
        self._elapsed_before_s = record.elapsed_s - clock.elapsed_s
        self._expected_s = expected_s or _UNKNOWN_JOB_S
        self._record = record
        self._tasks_done = record.tasks_done
        self._operations_before = record.operations
        self._fraction_done = 0.0
        self._task_began_s = clock.elapsed_s
        self._forget_task()
        if record.checkpoints:
            self.go_on(record.checkpoints[0].reached)

    def _forget_task(self) -> None:
        self._task_fraction: float | None = 0.0
        self._task_operations = _NOTHING

    def begin_task(self, *, estimated: bool) -> None:
        """The program of the next task runs from now on; whether its fraction is to be estimated, or it tells that."""
        self._task_began_s = self._clock.elapsed_s
        self._task_fraction = None if estimated else 0.0

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        """Of the next task, newest first: what it may go on from."""
        return self._record.checkpoints

    @property
    def promising_checkpoints(self) -> Sequence[Checkpoint]:
        """Without those that the hypervisor has ended upon again and again."""
        tries = self._record.failed_tries if self._record.failed_as == RevertedMachineExited.__name__ else 0
        return self._record.checkpoints[tries // _TRIES_EACH :]

    @property
    def program_ran_s(self) -> float:
        """Running time of the task's program over all episodes."""
        return self._clock.elapsed_s - self._task_began_s

    def go_on(self, reached: Reached) -> None:
        """The program of the next task goes on from there."""
        now_s = self._clock.elapsed_s
        self._elapsed_before_s = reached.elapsed_s - now_s
        self._task_began_s = now_s - reached.program_ran_s
        self._task_fraction = reached.fraction_of_task
        self._task_operations = Operations(
            floating_point=reached.floating_point_operations, integer=reached.integer_operations
        )
        self.cpu_time.go_on(reached.cpu_time_s, guest_s=reached.guest_cpu_time_s)

    def begin_anew(self) -> None:
        """The next task goes on from none of its checkpoints."""
        self._forget_task()
        self._elapsed_before_s = self._record.elapsed_s - self._clock.elapsed_s
        self.cpu_time.go_on(self._record.cpu_time_s, guest_s=0.0)
        self._record = replace(self._record, checkpoints=())

    def fraction_of_task(self, fraction: float) -> None:
        """The program says that this much of the task is done, 0 to 1. What is less than before is ignored."""
        self._task_fraction = max(min(fraction, _MOST_OF_TASK), self._task_fraction or 0.0)

    def computed(self, operations: Operations) -> None:
        """The program says that it has computed so much. What is less than before is ignored."""
        self._task_operations = Operations(
            floating_point=max(operations.floating_point, self._task_operations.floating_point),
            integer=max(operations.integer, self._task_operations.integer),
        )

    def end_task(self) -> None:
        """The task is done, and its outputs are in their places."""
        self._operations_before = self._operations()
        self._tasks_done += 1
        self._forget_task()

    def reached(self) -> Reached:
        """How far the job is just now, while a program runs."""
        return Reached(
            cpu_time_s=self._cpu_time_s(),
            elapsed_s=self.elapsed_s,
            fraction_of_task=self._task_fraction,
            program_ran_s=self.program_ran_s,
            floating_point_operations=self._task_operations.floating_point,
            integer_operations=self._task_operations.integer,
            guest_cpu_time_s=self.cpu_time.guest_s,
        )

    def record_of(self, checkpoints: Sequence[Checkpoint]) -> Record:
        """What is safe with these, once it is written down: then `checkpointed` is to be told."""
        return replace(self._record, checkpoints=tuple(checkpoints), failed_tries=0, failed_as="")

    def record(self) -> Record:
        """What is safe at the end of a task, once it is written down: then `checkpointed` is to be told."""
        return Record(
            job=self._record.job,
            tasks_done=self._tasks_done,
            tasks_in_place=self._tasks_done,
            cpu_time_s=self._cpu_time_s(),
            elapsed_s=self.elapsed_s,
            floating_point_operations=self._operations_before.floating_point,
            integer_operations=self._operations_before.integer,
        )

    def _cpu_time_s(self) -> float:
        return max(self.cpu_time.total_s(), self._record.safe_cpu_time_s + _LEAST_CHANGE_S)

    def checkpointed(self, record: Record) -> None:
        """The record is on the disk now."""
        self._record = record

    @property
    def elapsed_s(self) -> float:
        """Running time over all episodes."""
        return self._elapsed_before_s + self._clock.elapsed_s

    def status(self) -> Status:
        operations = self._operations()
        return Status(
            fraction_done=self._fraction(),
            cpu_time_s=self.cpu_time.total_s(),
            activity=self.activity,
            checkpoint_cpu_time_s=self._record.safe_cpu_time_s,
            working_set_bytes=self._own.memory_info().rss + self.machine_bytes(),
            operations=operations if operations != _NOTHING else None,
        )

    def _fraction(self) -> float:
        weights, done = self._weights, self._tasks_done
        reached = sum(weights[:done]) + (weights[done] * self._fraction_of_task() if done < len(weights) else 0.0)
        self._fraction_done = max(self._fraction_done, reached / sum(weights))
        return self._fraction_done

    def _fraction_of_task(self) -> float:
        if self._task_fraction is not None:
            return self._task_fraction
        expected_s = self._expected_s * self._weights[self._tasks_done] / sum(self._weights)
        return estimated_fraction(self.program_ran_s, expected_s)

    def _operations(self) -> Operations:
        before, now = self._operations_before, self._task_operations
        return Operations(
            floating_point=before.floating_point + now.floating_point, integer=before.integer + now.integer
        )
