"""Plays a script on a job: does its steps one after the other, and tells how it went."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NoReturn

from vmwrapper.boinc.api import Status
from vmwrapper.concurrency import beside
from vmwrapper.twin.client import REAL_PACE, ClientTwin, Pace, say
from vmwrapper.twin.files import TaskFiles
from vmwrapper.twin.script import Step, Verb
from vmwrapper.twin.slot import twin_slot

_REASON, _LIMIT = "script", "limit of CPU time"


def play(
    files: TaskFiles,
    *,
    command: Sequence[str],
    steps: Sequence[Step],
    show: Callable[[Status], None],
    pace: Pace = REAL_PACE,
) -> int:
    """Run the job as a client would, and do to it what the steps say; the exit status for our process.

    `command` starts the app; `show` is called with each status that it sends.
    """

    async def played() -> int:
        with twin_slot(files) as slot:
            client = ClientTwin(
                slot,
                command=command,
                tells_pid=all(step.verb is not Verb.HEARTBEATS_OFF for step in steps),
                show=show,
                pace=pace,
            )
            player = _Player(client, steps)
            async with beside(player.play(), player.throttle(pace.poll_s)):
                status = await client.run()
            player.sum_up()
            return status

    return asyncio.run(played())


class _Player:
    def __init__(self, client: ClientTwin, steps: Sequence[Step]) -> None:
        self._client = client
        self._steps = steps
        self._done = 0
        self._cpu_limit_percent = 100.0

    async def play(self) -> None:
        for step in self._steps:
            if self._client.is_shutting_down:
                return
            say(f"line {step.line}: {step}")
            if step.needs_app:
                await self._client.runs.wait()
            await self._perform(step)
            self._done += 1
        self._client.start()

    async def _perform(self, step: Step) -> None:  # noqa: C901, PLR0912  (a table)
        client = self._client
        match step.verb:
            case Verb.WAIT:
                await asyncio.sleep(step.number)
            case Verb.WAIT_FOR:
                await client.said(step.text)
            case Verb.SUSPEND:
                client.suspend(_REASON)
            case Verb.RESUME:
                client.resume(_REASON)
            case Verb.QUIT:
                await client.quit()
            case Verb.KILL:
                await client.kill()
            case Verb.ABORT:
                await client.abort()
            case Verb.START:
                client.start()
                await client.runs.wait()
            case Verb.HEARTBEATS_OFF | Verb.HEARTBEATS_ON:
                client.sends_heartbeats = step.verb is Verb.HEARTBEATS_ON
            case Verb.NETWORK_OFF | Verb.NETWORK_ON:
                client.network_suspended = step.verb is Verb.NETWORK_OFF
            case Verb.REREAD:
                client.reread()
            case Verb.TRICKLE_DOWN:
                client.trickle_down(step.text)
            case Verb.CPU_LIMIT:
                self._cpu_limit_percent = step.number

    async def throttle(self, poll_s: float) -> NoReturn:
        """Let the app run for part of the time only, in periods whose shorter part is the client's second."""
        client = self._client
        while True:
            percent = self._cpu_limit_percent
            if percent >= 100 or not client.runs.is_set():
                await asyncio.sleep(poll_s)
                continue
            await asyncio.sleep(poll_s * max(1.0, percent / (100 - percent)))
            if client.runs.is_set():
                client.suspend(_LIMIT)
                await asyncio.sleep(poll_s * max(1.0, (100 - percent) / percent))
                client.resume(_LIMIT)

    def sum_up(self) -> None:
        """Tell what a person wants to know at the end."""
        for step in self._steps[self._done :]:
            if step.verb is not Verb.ABORT:  # at which the job ends
                say(f"line {step.line} was not done, since the job was over: {step}")
        for number, episode in enumerate(self._client.episodes, start=1):
            asked = f", until {episode.asked}" if episode.asked else ""
            say(f"episode {number}: {episode.lasted_s:.0f} s from {episode.began_at}{asked}: {episode.ending.meaning}")
        seen = self._client.figures
        say(
            f"seen last: {100 * seen.fraction_done:.1f} % done, {seen.cpu_time_s:.2f} s of CPU time, "
            f"checkpoint at {seen.checkpoint_cpu_time_s:.2f} s, {self._client.elapsed_s:.0f} s elapsed, "
            f"at most {self._client.peak_bytes / 2**20:.0f} MiB in RAM"
        )
