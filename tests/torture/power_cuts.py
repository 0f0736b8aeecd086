"""Cuts the power of a job with checkpoints, again and again, and has it go on from what is left.

    python -m tests.torture.power_cuts --cuts 100 --seed 7
    python -m tests.torture.power_cuts --cuts 1000 --look  only looks at what is left: layers, states, record, outputs
    python -m tests.torture.power_cuts --keep FOLDER ...   keeps the recordings, and uses them when they are there
    python -m tests.torture.power_cuts --keep FOLDER --recording quits --cut 5012 none all 0   makes one of the cuts

Half of the cuts are of a job that runs through, the others of one that stops upon request and is started again. Each
must end well, with the right outputs, having lost nothing that was safe before; what a power cut may leave is told in
`power_cut`. The exit status is 1 where one did not.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from . import landmarks
from .content import Fate
from .landmarks import Landmarks
from .power_cut import Cut
from .recorded_job import Outcome, Place, look, play_back, record

QUITS_AFTER = 4
KINDS = {"through": None, "quits": QUITS_AFTER}


class Tally:
    """Counts how cuts ended, by where in the job's story they were."""

    def __init__(self) -> None:
        self._counts: dict[landmarks.Place, Counter[str]] = defaultdict(Counter)
        self.bad = 0

    def add(self, place: landmarks.Place, outcome: Outcome) -> None:
        counts = self._counts[place]
        counts["cuts"] += 1
        reached = outcome.went_on_from
        counts["anew" if reached is None else "checkpoint" if reached.checkpoint else "task"] += 1
        if outcome.problems:
            counts["bad"] += 1
            self.bad += 1

    def table(self) -> str:
        columns = ("cuts", "checkpoint", "task", "anew", "bad")
        rows = [["place", *columns]]
        rows += [[place.value, *(str(self._counts[place][one]) for one in columns)] for place in self._counts]
        rows += [["all", *(str(sum(counts[one] for counts in self._counts.values())) for one in columns)]]
        return "\n".join(f"{row[0]:12}" + "".join(f"{one:>12}" for one in row[1:]) for row in rows)


def cut_all(
    name: str,
    place: Place,
    found: Landmarks,
    cuts: Sequence[tuple[Cut, landmarks.Place]],
    tally: Tally,
    *,
    judge: Callable[[Place, Landmarks, Cut], Outcome],
) -> None:
    for cut, where in cuts:
        began_s = time.monotonic()
        outcome = judge(place, found, cut)
        tally.add(where, outcome)
        words = f"{cut.after} {cut.contents.value} {cut.names.value} {cut.seed}"
        print(
            f"--recording {name} --cut {words}  # {where.value}, safe {_short(outcome.safe)}, "
            f"went on from {_short(outcome.went_on_from)}, {time.monotonic() - began_s:.1f} s"
            f"{': BAD' if outcome.problems else ''}",
            flush=True,
        )
        for problem in outcome.problems:
            print(f"    {problem}")
        if outcome.problems:
            print("".join(f"    | {line}\n" for line in outcome.log.splitlines()[-8:]), end="", flush=True)


def _short(reached: landmarks.Reached | None) -> str:
    return f"{reached.tasks_done}.{reached.checkpoint}" if reached else "-"


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="power-cuts-") as folder:
            yield Path(folder)


def _recorded(folder: Path, name: str) -> tuple[Place, Landmarks]:
    place = Place(folder / name)
    if not place.folder.exists():
        place = record(place.folder, quits_after=KINDS[name])
    found = place.landmarks()
    merged = {layer for one in found.records for layer in one.layers} - (found.records[-1].layers)
    print(
        f"{name}: {len(found.recording.operations)} operations, {len(found.records)} records, "
        f"{len(merged)} layers came and went; "
        + ", ".join(f"{len(places)} {where.value}" for where, places in found.places.items()),
        flush=True,
    )
    return place, found


def main() -> int:
    parser = argparse.ArgumentParser(description="Cuts the power of a job with checkpoints, and has it go on.")
    parser.add_argument("--cuts", type=int, default=100, metavar="HOW_MANY")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the recordings")
    parser.add_argument("--recording", choices=KINDS, help="only of this one")
    parser.add_argument("--cut", nargs=4, metavar=("AFTER", "CONTENTS", "NAMES", "SEED"), help="only this one")
    parser.add_argument("--look", action="store_true", help="only look at what is left; a second a cut instead of ten")
    asked = parser.parse_args()
    names = [asked.recording] if asked.recording else list(KINDS)
    rng = Random(asked.seed)
    tally = Tally()
    with _folder(asked.keep) as folder:
        for name in names:
            place, found = _recorded(folder, name)
            if asked.cut:
                after, contents, of_names, seed = asked.cut
                cuts = [(Cut(int(after), Fate(contents), Fate(of_names), int(seed)), landmarks.Place.ELSEWHERE)]
            else:
                cuts = found.cuts(how_many=asked.cuts // len(names), rng=rng)
            cut_all(name, place, found, cuts, tally, judge=look if asked.look else play_back)
    print(tally.table())
    return 1 if tally.bad else 0


if __name__ == "__main__":
    sys.exit(main())
