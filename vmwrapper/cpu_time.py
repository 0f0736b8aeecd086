"""What the job has cost in CPU time, over all its tasks and episodes."""

import time
from collections.abc import Callable

from vmwrapper.clock import RunningClock
from vmwrapper.job.model import CpuTimeBasis


class CpuTime:
    """Counts by each task's basis. Never falls, and never grows by more than all CPUs can give in the running time.

    Source of that bound: BOINC's server raises the elapsed time, and so the credit, to the CPU time that it is told.
    """

    def __init__(self, before_s: float, clock: RunningClock, *, own_s: Callable[[], float] = time.process_time) -> None:
        """`before_s` is of earlier episodes, `own_s` tells what this process has used."""
        self._clock = clock
        self._own_s = own_s
        self._own_before_s = 0.0
        self._before_s = self._total_s = self._allowed_s = before_s
        self._allowed_until_s = clock.elapsed_s
        self._cpus = 1
        self._task_s: Callable[[], float] = float
        self._guest_s = self._guest_before_s = 0.0

    def go_on(self, before_s: float, *, guest_s: float) -> None:
        """Count on from this total of earlier episodes, at which the guest had said that much."""
        self._before_s = before_s
        self._total_s = max(self._total_s, before_s)
        self._allowed_s = max(self._allowed_s, before_s)
        self._guest_s = self._guest_before_s = guest_s

    def begin_task(self, machine_s: Callable[[], float], *, basis: CpuTimeBasis, cpus: int) -> None:
        """Count a task from now on; `machine_s` tells what its new machine has used, which has so many CPUs."""
        self.total_s()
        began_s, own_before_s = self._clock.elapsed_s, self._own_before_s
        self._cpus = cpus
        match basis:
            case CpuTimeBasis.HOST:
                self._task_s = lambda: machine_s() + self._own_s() - own_before_s
            case CpuTimeBasis.GUEST:
                self._task_s = lambda: self._guest_s - self._guest_before_s
            case CpuTimeBasis.ELAPSED:
                self._task_s = lambda: self._clock.elapsed_s - began_s

    @property
    def guest_s(self) -> float:
        """What the guest has said."""
        return self._guest_s

    def guest_says(self, seconds: float) -> None:
        """What the guest has used since its boot. Less than before is ignored."""
        self._guest_s = max(seconds, self._guest_s)

    def end_task(self) -> None:
        self.go_on(self.total_s(), guest_s=0.0)
        self._own_before_s = self._own_s()
        self._task_s = float
        self._cpus = 1

    def total_s(self) -> float:
        now_s = self._clock.elapsed_s
        self._allowed_s += (now_s - self._allowed_until_s) * self._cpus
        self._allowed_until_s = now_s
        self._total_s = max(self._total_s, min(self._before_s + self._task_s(), self._allowed_s))
        return self._total_s
