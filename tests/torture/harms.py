"""What is done to a job in one round, drawn from the round's seed."""

import os
import random
from dataclasses import dataclass
from enum import Enum

from .points import FULL_STATE, POINTS, Kind

_MOST_HARMS = 3
_MOST_DELAY_S = 0.7
_SECONDS_PER_STEP = 0.08
_BOOT_S = 3.0
_CHAPTERS = (
    "Machine created",
    "Machine is on",
    "Guest is ready",
    "Copying in input input",
    "Running the program: long.sh",
    "Going on with the program",
    "before checkpoint",
    "Checkpoint taken",
    "Program done",
    "Copying out output grown",
    "Sanitizing",
    "Processing task 2",
    "Running the program: short.sh",
    "Finish called",
)
"""Of the log, from which a moment is counted."""


class Way(Enum):
    """The kinds of rounds. A round's way is that of its first harm; others may follow."""

    WRAPPER = "kill -9 of the wrapper"
    QEMU = "kill -9 of QEMU"
    BOTH = "kill -9 of wrapper and QEMU"
    TERM = "SIGTERM"
    TERM_THEN_KILL = "SIGTERM, then kill -9"
    POINT_WRAPPER = "kill -9 of the wrapper at a fault point"
    POINT_QEMU = "kill -9 of QEMU at a fault point"
    POINT_BOTH = "kill -9 of both at a fault point"
    POINT_ERROR = "error of the disk at a fault point"
    FULL_STATE = "no space for the state file"
    FULL_DISK = "a full disk"
    CLIENT = "kill -9 of the client"
    CLIENT_WRAPPER = "kill -9 of the wrapper under a client"
    CLIENT_BOTH = "kill -9 of client and wrapper"
    CLIENT_QUIT = "quit by the client"
    CLIENT_POINT = "kill -9 of the wrapper under a client at a fault point"

    @property
    def needs_client(self) -> bool:
        return self in _UNDER_CLIENT

    @property
    def needs_root(self) -> bool:
        return self is Way.FULL_DISK

    @property
    def at_point(self) -> bool:
        """Whether `faulty` does it, and no one from outside."""
        return self in _POINT_KINDS


_UNDER_CLIENT = {Way.CLIENT, Way.CLIENT_WRAPPER, Way.CLIENT_BOTH, Way.CLIENT_QUIT, Way.CLIENT_POINT}
_POINT_KINDS = {
    Way.POINT_WRAPPER: (Kind.WRAPPER,),
    Way.POINT_QEMU: (Kind.QEMU,),
    Way.POINT_BOTH: (Kind.BOTH,),
    Way.POINT_ERROR: (Kind.EIO, Kind.ENOSPC),
    Way.FULL_STATE: (Kind.ENOSPC,),
    Way.CLIENT_POINT: (Kind.WRAPPER,),
}
_BY_HAND = tuple(way for way in Way if not way.needs_client and not way.needs_root)
_NEXT = {True: tuple(_UNDER_CLIENT), False: _BY_HAND}


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """What is done to one episode, and when: at a point, or so long after a chapter began."""

    way: Way
    point: str = "none"
    kind: Kind = Kind.WRAPPER
    nth: int = 1
    chapter: str = ""
    """Empty for the episode's beginning."""
    chapter_nth: int = 1
    delay_s: float = 0.0
    then_s: float = 0.0
    """Until the second of two, or until a full disk has room again."""
    suspend_s: float = 0.0
    """How long the client suspends the job, soon after its program runs; 0 for not at all."""

    @property
    def goes_on(self) -> bool:
        """Whether it is done only where a checkpoint is gone on from."""
        return self.point in POINTS and POINTS[self.point].going_on

    def __str__(self) -> str:
        if self.point != "none":
            return f"{self.kind.value} at {self.point}, call {self.nth}"
        after = f" after {self.chapter!r} ({self.chapter_nth})" if self.chapter else ""
        return f"{self.way.value} {self.delay_s:.2f} s{after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Of one round."""

    seed: str
    way: Way
    steps: int
    """Of the tortured program: some 12 a second."""
    harms: tuple[Harm, ...]
    main: int = 0
    """Which of them the round is about."""

    @property
    def number(self) -> int:
        """For what is random in the job."""
        return random.Random(self.seed).getrandbits(32)


def ways_here() -> list[Way]:
    """Those for which we have the rights."""
    return [way for way in Way if os.geteuid() == 0 or not way.needs_root]


def plan(seed: str, way: Way, *, steps: int, point: str | None = None) -> Plan:
    """Draw a round; `point` is where its first harm is done, if it is done at one."""
    chance = random.Random(f"plan {seed}")
    ways = [way]
    while len(ways) < _MOST_HARMS and chance.random() < 0.5:
        ways.append(way if way.needs_root else chance.choice(_NEXT[way.needs_client]))
    harms = [_harm(chance, each, steps, point if number == 0 else None) for number, each in enumerate(ways)]
    main = 0
    if harms[0].goes_on:
        main = 1
        kill = Way.CLIENT_POINT if way.needs_client else Way.POINT_WRAPPER
        harms.insert(0, Harm(way=kill, point="kept", nth=chance.randint(1, 3)))
    return Plan(seed=seed, way=way, steps=steps, harms=tuple(harms), main=main)


def points_for(way: Way) -> list[str]:
    """At which harm can be done in that way."""
    if way is Way.FULL_STATE:
        return [FULL_STATE]
    names = [name for name, point in POINTS.items() if set(point.kinds) & set(_POINT_KINDS.get(way, ()))]
    return [name for name in names if name != FULL_STATE and (way is not Way.CLIENT_POINT or name != "remove-record")]


def _harm(chance: random.Random, way: Way, steps: int, point: str | None) -> Harm:
    suspend_s = chance.uniform(0.2, 3) if way.needs_client and chance.random() < 0.5 else 0.0
    if way.at_point:
        name = point or chance.choice(points_for(way))
        kinds = [kind for kind in POINTS[name].kinds if kind in _POINT_KINDS[way]]
        return Harm(
            way=way,
            point=name,
            kind=chance.choice(kinds),
            nth=_nth(chance, POINTS[name].most),
            suspend_s=suspend_s,
        )
    chapter, chapter_nth, delay_s = "", 1, chance.uniform(0.05, _BOOT_S + steps * _SECONDS_PER_STEP)
    if chance.random() < 0.5:
        chapter, delay_s = chance.choice(_CHAPTERS), chance.uniform(0, _MOST_DELAY_S)
        chapter_nth = chance.randint(1, 3) if "heckpoint" in chapter else 1
    return Harm(
        way=way,
        chapter=chapter,
        chapter_nth=chapter_nth,
        delay_s=delay_s,
        then_s=chance.uniform(0, 0.8) if way is not Way.FULL_DISK else chance.uniform(0.5, 4),
        suspend_s=suspend_s,
    )


def _nth(chance: random.Random, most: int) -> int:
    """Rather an early one, since there may not be so many."""
    return min(chance.randint(1, most), chance.randint(1, most))
