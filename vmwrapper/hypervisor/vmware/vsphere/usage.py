"""What a machine uses of its host, of which the server tells by samples.

CPU time is the sum of the performance counter `cpu.run` (or `cpu.used`, where that is not kept): milliseconds in each
20 s. Between samples it goes on at the rate of quickStats.overallCpuUsage, or as if all processors were busy until that
is known, and only while the machine runs. So what is told is wrong by no more than 20 s of all processors, and the sum
over a job by no more than that for each time that it is powered off, when the last sample is not waited for.

Source: the vSphere Web Services API reference, PerformanceManager and VirtualMachineQuickStats.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from pyVmomi import vim

from vmwrapper.hypervisor.vmware.vsphere.connection import Connection, Properties

SAMPLE_S = 20
QUICK_STATS = (
    "summary.quickStats.overallCpuUsage",
    "summary.quickStats.hostMemoryUsage",
    "summary.runtime.maxCpuUsage",
)
_COUNTERS = ("run", "used")
_MS_PER_S = 1000
_MIB = 1 << 20


class CpuTime:
    """Of one machine, over all its lives. Never falls."""

    def __init__(self, cpus: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cpus = cpus
        self._clock = clock
        self._counted_s = 0.0
        self._uncounted_s = 0.0
        """In which the machine ran, and of which there is no sample yet; up to `_since`."""
        self._since: float | None = None
        self._rate = float(cpus)
        self._said_s = 0.0

    def runs(self) -> None:
        """From now on. A second call does nothing."""
        if self._since is None:
            self._since = self._clock()

    def stands(self) -> None:
        """From now on. A second call does nothing."""
        self._uncounted_s = self._running_s()
        self._since = None

    def ends(self) -> None:
        """Its life does: no more samples of it will come."""
        self._counted_s = self.total_s()
        self._uncounted_s, self._since, self._rate = 0.0, None, float(self._cpus)

    def at_rate(self, cpu_s_per_s: float) -> None:
        """That much is used from now on."""
        before_s = self.total_s()
        self._rate = min(max(cpu_s_per_s, 0.0), float(self._cpus))
        self._said_s = before_s

    def sampled(self, samples_ms: Sequence[int]) -> None:
        """So much was used in each of the last samples, oldest first."""
        used_s = sum(min(max(0, one) / _MS_PER_S, SAMPLE_S * self._cpus) for one in samples_ms)
        self._counted_s += used_s
        self._uncounted_s = max(0.0, self._running_s() - SAMPLE_S * len(samples_ms))
        self._since = self._clock() if self._since is not None else None

    def _running_s(self) -> float:
        return self._uncounted_s + (self._clock() - self._since if self._since is not None else 0.0)

    def total_s(self) -> float:
        self._said_s = max(self._said_s, self._counted_s + self._rate * self._running_s())
        return self._said_s


def rate(properties: Properties, cpus: int) -> float | None:
    """Of its CPU time, in CPU seconds a second, where the server knows it already."""
    used_mhz = properties.get("summary.quickStats.overallCpuUsage")
    most_mhz = properties.get("summary.runtime.maxCpuUsage")
    if not used_mhz or not most_mhz:
        return None
    return float(used_mhz) / float(most_mhz) * cpus


def memory_bytes(properties: Properties) -> int:
    """That it has of its host's."""
    return int(properties.get("summary.quickStats.hostMemoryUsage") or 0) * _MIB


class Counter:
    """The server's performance counter of one machine's CPU time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._id: int | None = None
        self._is_missing = False
        self._last: Any = None

    async def new_samples(self, machine: Any) -> Sequence[int]:
        """Milliseconds of the samples since the last call; at the first, none. Raises VsphereFailed."""
        if self._is_missing or (self._id is None and not await self._find()):
            return ()
        kind = vim.PerformanceManager
        metric = kind.MetricId(counterId=self._id, instance="")
        query = kind.QuerySpec(entity=machine, metricId=[metric], intervalId=SAMPLE_S, maxSample=10)
        found = await self._connection.call(self._connection.content.perfManager, "QueryPerf", [query])
        series = [(one.sampleInfo, of.value) for one in found or () for of in one.value if of.id.counterId == self._id]
        if not series:
            return ()
        samples = list(zip((info.timestamp for info in series[0][0]), series[0][1], strict=False))
        last, self._last = self._last, max((when for when, _ in samples), default=self._last)
        return [used_ms for when, used_ms in samples if last is not None and when > last]

    async def _find(self) -> bool:
        counters = await self._connection.property(self._connection.content.perfManager, "perfCounter")
        ids = {
            one.nameInfo.key: one.key
            for one in counters or ()
            if one.groupInfo.key == "cpu" and one.rollupType == "summation" and one.unitInfo.key == "millisecond"
        }
        self._id = next((ids[name] for name in _COUNTERS if name in ids), None)
        self._is_missing = self._id is None
        return not self._is_missing
