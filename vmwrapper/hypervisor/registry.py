"""The hypervisors there are, and which of them runs a task."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmwrapper.clock import RunningClock
from vmwrapper.errors import JobError, NoUsableHypervisor
from vmwrapper.hypervisor.interface import Abilities, Hypervisor, ProbeResult
from vmwrapper.hypervisor.qemu.backend import QemuHypervisor
from vmwrapper.hypervisor.virtualbox.backend import VirtualBoxHypervisor
from vmwrapper.hypervisor.vmware.backend import VmwareHypervisor
from vmwrapper.job.model import Task
from vmwrapper.job.resolve import Resolve, find_image

log = logging.getLogger(__name__)


def all_hypervisors() -> tuple[Hypervisor, ...]:
    """One of each, in the order of preference among equals."""
    return (QemuHypervisor(), VirtualBoxHypervisor(), VmwareHypervisor())


@dataclass(frozen=True, slots=True)
class Needs:
    """What a task asks of a hypervisor: by itself, that it commands guests."""

    shared_folder: bool = False
    """A guest that works by itself is not commanded, and shares a folder."""

    def are_met_by(self, abilities: Abilities) -> bool:
        return abilities.shared_folder if self.shared_folder else abilities.guest_commands


COMMANDS = Needs()


def needs_of(task: Task) -> Needs:
    """What a hypervisor must be able to do for it."""
    return Needs(shared_folder=task.self_running is not None)


def why_unfit(task: Task, resolve: Resolve, hypervisor: Hypervisor) -> str | None:
    """Why the hypervisor can't run the task anywhere, or None."""
    if hypervisor.abilities.needs_login and not task.password and not task.self_running:
        return "the job has no <password>"
    image = find_image(task.vm, resolve, hypervisor.image_suffixes)
    if image is None or image.suffix not in hypervisor.image_suffixes:
        return f"it runs no image like {task.vm}"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for a task."""

    name: str | None = None
    """Somebody's wish, which leaves no choice."""
    needs: Needs = COMMANDS
    earlier: str | None = None
    """Which one has checkpoints of it, and is best for that."""
    unfit: Callable[[Hypervisor], str | None] = lambda _: None
    """Why one can't run it, as a sentence; such a one is taken only where all are, to say what is wrong."""


class Registry:
    """Probes each hypervisor once, when it is first wanted."""

    def __init__(self, hypervisors: tuple[Hypervisor, ...]) -> None:
        self._hypervisors = hypervisors
        self._results: dict[str, ProbeResult] = {}
        self._said: set[str] = set()

    def named(self, wanted: str | None) -> Sequence[Hypervisor]:
        """All of this name, or all for none. Raises JobError where there are none."""
        return _named(self._hypervisors, wanted)

    def candidates(self, wanted: str | None, needs: Needs = COMMANDS) -> Sequence[Hypervisor]:
        """The same of those that meet these needs."""
        able = [one for one in self._hypervisors if needs.are_met_by(one.abilities)]
        if needs.shared_folder and not any(wanted in (None, one.name) for one in able):
            self.named(wanted)
            which = f"backend {wanted!r} can share no" if wanted else "no backend can share a"
            listed = f": {', '.join(one.name for one in able)} can" if able else ""
            raise JobError(f"{which} folder with a guest that works by itself{listed}")
        return _named(able, wanted)

    async def choose(self, wanted: Wanted, clock: RunningClock) -> Hypervisor:
        """The best hypervisor that can be used, and one line in the log that says why it is that one.

        The first accelerated one is best, then the first: of these, QEMU's emulation is many times as fast as others'.
        Raises JobError for a name that there is none of, NoUsableHypervisor where it can't be used on this host.
        """
        against: dict[str, str] = {}
        fit = []
        candidates = self.candidates(wanted.name, wanted.needs)
        candidates = [one for one in candidates if wanted.name or not one.abilities.shows_password]
        for hypervisor in candidates:
            if reason := wanted.unfit(hypervisor):
                against[hypervisor.name] = reason
            else:
                fit.append(hypervisor)
        usable = []
        for hypervisor in sorted(fit or candidates, key=lambda one: one.name != wanted.earlier):
            result = await self._probe(hypervisor, clock)
            if not result.usable:
                against[hypervisor.name] = "; ".join(result.reasons)
                continue
            usable.append(hypervisor)
            if result.accelerated or hypervisor.name == wanted.earlier:
                break
            against[hypervisor.name] = "it has no hardware acceleration"
        if not usable:
            probed = [reason for name, reason in against.items() if name in self._results]
            unfit = [f"{name} not, since {reason}" for name, reason in against.items() if name not in self._results]
            raise NoUsableHypervisor("; ".join([*probed, *unfit]))
        chosen = max(usable, key=lambda one: self._results[one.name].accelerated)
        why = f"Using {chosen.name}: {self._why(chosen, wanted, against)}"
        if why not in self._said:  # of an earlier task
            self._said.add(why)
            log.info("%s", why)
        return chosen

    def _why(self, chosen: Hypervisor, wanted: Wanted, against: dict[str, str]) -> str:
        if wanted.name:
            return "it was asked for"
        if chosen.name == wanted.earlier:
            return "an earlier episode has left checkpoints with it"
        others = [f"{name} not, since {reason}" for name, reason in against.items() if name != chosen.name]
        accelerated = self._results[chosen.name].accelerated
        return "; ".join(["it has hardware acceleration" if accelerated else "nothing is faster here", *others])

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
