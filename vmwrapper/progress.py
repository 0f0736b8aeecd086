"""How far the job is, over all its tasks."""

from collections.abc import Callable, Sequence

from vmwrapper.boinc.api import Status


class Progress:
    """Adds up the tasks' shares and CPU times. The fraction done never falls."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights
        self._tasks_done = 0
        self._cpu_time_before_s = 0.0
        self._machine_cpu_time_s: Callable[[], float] = float
        self.activity = "starting"

    def follow(self, machine_cpu_time_s: Callable[[], float]) -> None:
        """Count the CPU time of a machine that was just created, as this tells it, from now on."""
        self._cpu_time_before_s += self._machine_cpu_time_s()
        self._machine_cpu_time_s = machine_cpu_time_s

    def task_done(self) -> None:
        """One more task is done, in the order of the weights."""
        self._tasks_done += 1

    def status(self) -> Status:
        return Status(
            fraction_done=sum(self._weights[: self._tasks_done]) / sum(self._weights),
            cpu_time_s=self._cpu_time_before_s + self._machine_cpu_time_s(),
            activity=self.activity,
        )
