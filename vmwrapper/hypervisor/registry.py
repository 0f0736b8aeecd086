"""The hypervisors there are, and which of them runs a task."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from vmwrapper.clock import RunningClock
from vmwrapper.errors import JobError, NoUsableHypervisor
from vmwrapper.hypervisor.interface import Abilities, Hypervisor, ProbeResult
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor

log = logging.getLogger(__name__)


def all_hypervisors() -> tuple[Hypervisor, ...]:
    """One of each, in the order of preference among equals."""
    return (QemuHypervisor(), VirtualBoxHypervisor())


@dataclass(frozen=True, slots=True)
class Needs:
    """What a task asks of a hypervisor: by itself, that it commands guests."""

    shared_folder: bool = False
    """A guest that works by itself is not commanded, and shares a folder."""

    def are_met_by(self, abilities: Abilities, *, named: bool) -> bool:
        """Whether one with these may be chosen. One that needs a login is only for jobs that name it."""
        if self.shared_folder:
            return abilities.shared_folder
        return abilities.guest_commands and (named or not abilities.needs_login)


COMMANDS = Needs()


class Registry:
    """Probes each hypervisor once, when it is first wanted."""

    def __init__(self, hypervisors: tuple[Hypervisor, ...]) -> None:
        self._hypervisors = hypervisors
        self._results: dict[str, ProbeResult] = {}

    def named(self, wanted: str | None) -> Sequence[Hypervisor]:
        """All of this name, or all for none. Raises JobError where there are none."""
        return _named(self._hypervisors, wanted)

    def candidates(self, wanted: str | None, needs: Needs = COMMANDS) -> Sequence[Hypervisor]:
        """The same of those that meet these needs."""
        able = [one for one in self._hypervisors if needs.are_met_by(one.abilities, named=wanted is not None)]
        if needs.shared_folder and not any(wanted in (None, one.name) for one in able):
            self.named(wanted)
            which = f"backend {wanted!r} can share no" if wanted else "no backend can share a"
            listed = f": {', '.join(one.name for one in able)} can" if able else ""
            raise JobError(f"{which} folder with a guest that works by itself{listed}")
        return _named(able, wanted)

    async def choose(self, wanted: str | None, clock: RunningClock, needs: Needs = COMMANDS) -> Hypervisor:
        """The hypervisor with this name, or the best usable one: accelerated ones first.

        Raises JobError for a name that there is none of, NoUsableHypervisor where it can't be used on this host.
        """
        candidates = self.candidates(wanted, needs)
        results = [await self._probe(hypervisor, clock) for hypervisor in candidates]
        usable = [pair for pair in zip(results, candidates, strict=True) if pair[0].usable]
        if not usable:
            raise NoUsableHypervisor("; ".join(reason for result in results for reason in result.reasons))
        _, chosen = max(usable, key=lambda pair: pair[0].accelerated)
        return chosen

    async def _probe(self, hypervisor: Hypervisor, clock: RunningClock) -> ProbeResult:
        if hypervisor.name not in self._results:
            result = await hypervisor.probe(clock)
            how = "with hardware acceleration" if result.accelerated else "without hardware acceleration"
            if result.usable:
                log.info("Connected to %s %s, %s", result.name, result.version, how)
            for reason in result.reasons:
                log.debug("%s: %s", result.name, reason)
            self._results[hypervisor.name] = result
        return self._results[hypervisor.name]


def _named(hypervisors: Sequence[Hypervisor], wanted: str | None) -> Sequence[Hypervisor]:
    found = [hypervisor for hypervisor in hypervisors if wanted in (None, hypervisor.name)]
    if not found:
        known = ", ".join(hypervisor.name for hypervisor in hypervisors)
        raise JobError(f"there is no backend {wanted!r} in this version: it has {known}")
    return found
