"""Tortures jobs for as many rounds as are asked for: `make torture ROUNDS=200 SEED=... CHECKPOINTS=2000`."""

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .harms import Plan, Way, plan, points_for, ways_here
from .rounds import Outcome, run_round

_DEFAULT_STEPS = 150
_AT_ONCE = 2


def plans(seed: str, rounds: int, ways: Sequence[Way], *, steps: int) -> Iterator[Plan]:
    """All kinds of rounds in turn, and for each all its points in turn."""
    # Those at points are worth more of the time, since there are so many.
    turns = [way for way in ways for _ in range(3 if len(points_for(way)) > 1 else 1)]
    random.Random(seed).shuffle(turns)
    waiting = {way: _shuffled(points_for(way), seed) for way in ways}
    for number in range(rounds):
        way = turns[number % len(turns)]
        point = next(waiting[way], None)
        yield plan(f"{seed}:{number}", way, steps=steps, point=point)


def _shuffled(names: Sequence[str], seed: str) -> Iterator[str]:
    again = 0
    while names:
        each = list(names)
        random.Random(f"{seed} {again}").shuffle(each)
        yield from each
        again += 1


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """The table at the end."""
    by_way: dict[Way, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_way[outcome.plan.way].append(outcome)
    table = Table("kind of round", "rounds", "missed", "harms", "where they hit", "went on", "losses")
    for way, those in by_way.items():
        hits = Counter(where for outcome in those for _, where in outcome.hits)
        went_on = sum((outcome.went_on for outcome in those), Counter[str]())
        table.add_row(
            way.value,
            str(sum(outcome.counts for outcome in those)),
            str(sum(not outcome.counts for outcome in those)),
            str(sum(hits.values())),
            ", ".join(f"{where} {times}" for where, times in hits.most_common()),
            ", ".join(f"{how} {times}" for how, times in went_on.most_common()),
            str(sum(bool(outcome.loss) for outcome in those)),
        )
    console.print(table)


def _tell(outcome: Outcome, console: Console) -> None:
    how = f"LOSS: {outcome.loss}: see {outcome.place}" if outcome.loss else "good"
    done = "; ".join(f"{harm} [{where}]" for harm, where in outcome.hits) or "no harm done"
    console.print(f"{outcome.plan.seed}: {how}, {outcome.lasted_s:.0f} s: {done}", markup=False, soft_wrap=True)


def _told(outcome: Outcome) -> dict[str, object]:
    return {
        "seed": outcome.plan.seed,
        "way": outcome.plan.way.name,
        "harms": [str(harm) for harm in outcome.plan.harms],
        "hits": [[str(harm), where] for harm, where in outcome.hits],
        "missed": [str(harm) for harm in outcome.missed],
        "went_on": dict(outcome.went_on),
        "loss": outcome.loss,
        "lasted_s": round(outcome.lasted_s, 1),
    }


def main() -> int:
    """All rounds; exit status 1 where one had a loss."""
    parser = argparse.ArgumentParser(prog="tests.torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", default=None)
    parser.add_argument("--only", type=int, action="append", help="only the round of this number")
    parser.add_argument("--way", action="append", choices=[way.name for way in Way], help="only this kind")
    parser.add_argument("--steps", type=int, default=_DEFAULT_STEPS, help="of the tortured program, some 12 a second")
    parser.add_argument("--at-once", type=int, default=_AT_ONCE)
    parser.add_argument("--json", type=Path, required=True)
    chosen = parser.parse_args()
    seed = chosen.seed or str(random.SystemRandom().randrange(10**6))
    console = Console(width=160)
    console.print(f"{chosen.rounds} rounds, SEED={seed}")
    ways = [Way[name] for name in chosen.way] if chosen.way else ways_here()
    drawn = list(plans(seed, chosen.rounds, ways, steps=chosen.steps))
    if chosen.only:
        drawn = [drawn[number] for number in chosen.only]
    outcomes = []
    with ThreadPoolExecutor(chosen.at_once) as pool:
        try:
            for outcome in pool.map(run_round, drawn):
                outcomes.append(outcome)
                _tell(outcome, console)
                told = {"seed": seed, "rounds": [_told(each) for each in outcomes]}
                chosen.json.write_text(json.dumps(told, indent=1) + "\n")
        except KeyboardInterrupt:
            console.print("stopping after the rounds that are going on")
            pool.shutdown(wait=True, cancel_futures=True)
    show(outcomes, console)
    if never := sorted(
        {h.point for o in outcomes for h in o.missed if h.way.at_point} - {h.point for o in outcomes for h, _ in o.hits}
    ):
        console.print(f"points that no round came to: {', '.join(never)}")
    losses = [outcome for outcome in outcomes if outcome.loss]
    console.print(f"losses: {len(losses)} of {len(outcomes)} rounds, SEED={seed}")
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
