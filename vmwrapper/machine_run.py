"""The machine of one task while it is on: begun, or gone on with from the newest checkpoint that is good for it."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext

from vmwrapper.checkpoint import Checkpoint
from vmwrapper.concurrency import beside
from vmwrapper.errors import (
    GuestError,
    GuestPanicked,
    GuestPoweredOff,
    MachineExited,
    RevertedMachineExited,
    SnapshotUnusable,
    VmwrapperError,
)
from vmwrapper.hostile import one_line
from vmwrapper.hypervisor.interface import Machine
from vmwrapper.progress import Progress
from vmwrapper.run_state import RunState

log = logging.getLogger(__name__)

CONSOLE_LINES = 20
_SUSPICIOUS_S = 60.0

Kept = Callable[[], AbstractAsyncContextManager[None]]
"""See `Keeper.kept`."""
Life = Callable[[Checkpoint | None], Awaitable[None]]
"""All that is to happen while a machine is on, from that checkpoint or from its boot; it watches the machine."""


async def _nothing() -> None:
    pass


class MachineRun:
    """Of a machine that is powered off before and after."""

    def __init__(self, machine: Machine, *, reverts: bool, run_state: RunState, progress: Progress) -> None:
        """`reverts` is whether it can go on from checkpoints."""
        self._machine = machine
        self._reverts = reverts
        self._run_state = run_state
        self._progress = progress

    async def run(
        self, life: Life, *, prepare: Callable[[], Awaitable[None]] = _nothing, kept: Kept | None = None
    ) -> None:
        """Have all of `life` happen, by one checkpoint after the other until it does, or else anew.

        `prepare` is called before a boot. `kept` makes what is around all that happens while the machine is on.
        """
        await self._run_state.may_run()
        if await self._go_on_from_any(life, kept):
            return
        await prepare()
        self._progress.activity = "booting"
        await self._machine.power_on()
        log.info("Machine is on")
        await self._while_on(None, life, kept)

    async def _go_on_from_any(self, life: Life, kept: Kept | None) -> bool:
        """Whether there is a checkpoint from which the task could be brought to its end."""
        if not self._progress.checkpoints:
            return False
        for checkpoint in self._progress.promising_checkpoints if self._reverts else ():
            try:
                await self._go_on(checkpoint, life, kept)
            except SnapshotUnusable as error:
                log.warning("Checkpoint %d can't be used: %s", checkpoint.snapshot.number, one_line(str(error)))
            else:
                return True
        log.warning("The task begins anew: there is no other checkpoint")
        self._progress.begin_anew()
        return False

    async def _go_on(self, checkpoint: Checkpoint, life: Life, kept: Kept | None) -> None:
        self._progress.activity = "going back to the checkpoint"
        await self._machine.revert(checkpoint.snapshot)
        self._progress.go_on(checkpoint.reached)
        log.info("Machine is on, as it was at checkpoint %d", checkpoint.snapshot.number)
        await self._while_on(checkpoint, life, kept)

    async def _while_on(self, checkpoint: Checkpoint | None, life: Life, kept: Kept | None) -> None:
        try:
            async with (
                kept() if kept else nullcontext(),
                beside(self._run_state.drive(self._machine, running=checkpoint is None)),
            ):
                try:
                    await life(checkpoint)
                except (GuestError, MachineExited) as error:
                    self._log_console()
                    if checkpoint and self._is_newest(checkpoint):
                        raise self._suspicion(checkpoint, error) from error
                    raise
        finally:
            await self._machine.power_off()

    def _is_newest(self, checkpoint: Checkpoint) -> bool:
        """Whether it was not yet good for another one."""
        newest = self._progress.checkpoints[:1]
        return [one.snapshot.number for one in newest] == [checkpoint.snapshot.number]

    def _suspicion(self, checkpoint: Checkpoint, error: VmwrapperError) -> VmwrapperError:
        """The error, where a machine may have ended for what it was reverted to."""
        ran_s = self._progress.program_ran_s - checkpoint.reached.program_ran_s
        if isinstance(error, GuestPanicked | GuestPoweredOff) and ran_s < _SUSPICIOUS_S:
            return SnapshotUnusable(f"soon after {error}")
        if type(error) is MachineExited:
            return RevertedMachineExited(str(error))
        return error

    def _log_console(self) -> None:
        last_lines = self._machine.console_tail.splitlines()[-CONSOLE_LINES:]
        log.error("The end of the guest's console:\n%s", "\n".join(last_lines) or "(nothing)")
