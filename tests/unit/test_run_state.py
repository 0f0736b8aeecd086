"""Why the guest stands still: random reasons, and a machine that takes its time."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.clock import RunningClock
from vmwrapper.run_state import Reason, RunState

from . import simulated_time

VERB_S = 3.0


@dataclass
class SlowMachine:
    """Pauses and resumes, one at a time, and remembers in which order."""

    running: bool = True
    verbs: list[str] = field(default_factory=list)
    busy: bool = False

    async def pause(self) -> None:
        await self._become(running=False)

    async def resume(self) -> None:
        await self._become(running=True)

    async def _become(self, *, running: bool) -> None:
        assert not self.busy, "one verb at a time"
        self.busy = True
        self.verbs.append("resume" if running else "pause")
        await asyncio.sleep(VERB_S)
        self.busy = False
        self.running = running


def drive(state: RunState, machine: Any) -> asyncio.Task[NoReturn]:
    return asyncio.create_task(state.drive(machine))


@dataclass(frozen=True)
class Step:
    hold: bool
    reason: Reason
    wait_s: float


STEPS = st.lists(
    st.builds(Step, hold=st.booleans(), reason=st.sampled_from(Reason), wait_s=st.sampled_from([0.0, 0.0, 1.0, 7.0])),
    max_size=30,
)


@given(STEPS)
def test_the_guest_runs_if_and_only_if_no_reason_holds(steps: Sequence[Step]) -> None:
    simulated_time.run(check(steps))


async def check(steps: Sequence[Step]) -> None:
    clock = RunningClock()
    state = RunState(clock)
    machine = SlowMachine()
    driving = drive(state, machine)
    held: set[Reason] = set()
    went_s = 0.0
    for step in steps:
        (state.hold if step.hold else state.release)(step.reason)
        (held.add if step.hold else held.discard)(step.reason)
        assert state.reasons == held
        await asyncio.sleep(step.wait_s)
        went_s += 0.0 if held else step.wait_s
        assert clock.elapsed_s == pytest.approx(went_s)
    await asyncio.sleep(3 * VERB_S)
    assert machine.running is not bool(held)
    assert machine.verbs[::2] == ["pause"] * len(machine.verbs[::2])
    assert machine.verbs[1::2] == ["resume"] * len(machine.verbs[1::2])
    driving.cancel()


@given(STEPS, st.floats(0, 20))
def test_a_reason_that_is_held_for_a_block_is_one_among_others(steps: Sequence[Step], block_s: float) -> None:
    steps = [step for step in steps if step.reason is not Reason.CHECKPOINT]

    async def story() -> None:
        clock = RunningClock()
        state = RunState(clock)
        machine = SlowMachine()
        driving = drive(state, machine)
        with state.held(Reason.CHECKPOINT):
            for step in steps:
                (state.hold if step.hold else state.release)(step.reason)
                await asyncio.sleep(step.wait_s)
            await asyncio.sleep(block_s)
            assert clock.elapsed_s == 0
            assert Reason.CHECKPOINT in state.reasons
        assert Reason.CHECKPOINT not in state.reasons
        await asyncio.sleep(3 * VERB_S)
        assert machine.running is not bool(state.reasons)
        driving.cancel()

    simulated_time.run(story())


def test_a_block_that_fails_holds_no_longer() -> None:
    async def story() -> None:
        state = RunState(RunningClock())
        with pytest.raises(KeyError), state.held(Reason.CHECKPOINT):
            raise KeyError
        assert state.reasons == frozenset()
        await asyncio.sleep(1)
        assert state.clock.elapsed_s == 1

    simulated_time.run(story())


@pytest.mark.parametrize(("running", "verbs"), [(True, []), (False, ["resume"])])
def test_a_machine_that_stands_still_at_first_is_resumed(running: bool, verbs: list[str]) -> None:  # noqa: FBT001
    async def story() -> None:
        state = RunState(RunningClock())
        machine = SlowMachine(running=running)
        driving = asyncio.create_task(state.drive(machine, running=running))  # type: ignore[arg-type]
        await asyncio.sleep(10)
        assert machine.verbs == verbs
        driving.cancel()

    simulated_time.run(story())


def test_one_that_stands_still_at_first_stays_so_while_a_reason_holds() -> None:
    async def story() -> None:
        state = RunState(RunningClock())
        state.hold(Reason.SUSPENDED)
        machine = SlowMachine(running=False)
        driving = asyncio.create_task(state.drive(machine, running=False))  # type: ignore[arg-type]
        await asyncio.sleep(10)
        assert machine.verbs == []
        driving.cancel()

    simulated_time.run(story())


def test_whoever_may_run_only_waits_while_a_reason_holds() -> None:
    async def story() -> None:
        state = RunState(RunningClock())
        await state.may_run()
        state.hold(Reason.SUSPENDED)
        state.hold(Reason.CHECKPOINT)
        waiting = asyncio.create_task(state.may_run())
        state.release(Reason.CHECKPOINT)
        await asyncio.sleep(1)
        assert not waiting.done()
        state.release(Reason.SUSPENDED)
        await waiting

    simulated_time.run(story())


def test_without_a_driver_no_machine_is_touched() -> None:
    async def story() -> None:
        state = RunState(RunningClock())
        machine = SlowMachine()
        driving = drive(state, machine)
        await asyncio.sleep(1)
        driving.cancel()
        await asyncio.sleep(1)
        state.hold(Reason.SUSPENDED)
        await asyncio.sleep(10)
        assert machine.verbs == []

    simulated_time.run(story())


def test_a_machine_that_is_driven_while_a_reason_holds_is_paused_at_once() -> None:
    async def story() -> None:
        state = RunState(RunningClock())
        state.hold(Reason.USER)
        machine = SlowMachine()
        driving = drive(state, machine)
        await asyncio.sleep(VERB_S + 1)
        assert not machine.running
        driving.cancel()

    simulated_time.run(story())


def test_what_the_machine_raises_comes_out() -> None:
    class Broken(SlowMachine):
        async def pause(self) -> None:
            raise ConnectionError

    async def story() -> None:
        state = RunState(RunningClock())
        state.hold(Reason.USER)
        with pytest.raises(ConnectionError):
            await drive(state, Broken())

    simulated_time.run(story())
