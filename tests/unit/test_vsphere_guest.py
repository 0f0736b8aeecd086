"""How often a guest of vSphere's is asked again, and whose fault it is in the end."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.errors import GuestError, GuestSilent, JobError, MachineExited, VmwrapperError
from vmwrapper.hypervisor.interface import Login
from vmwrapper.hypervisor.vmware.called_guest import CutOff
from vmwrapper.hypervisor.vmware.vsphere.connection import PATIENCE_S
from vmwrapper.hypervisor.vmware.vsphere.faults import Fault, VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.guest import GuestOperations

from .simulated_time import run

LIMIT_S = 60.0
NOWHERE: Any = None
"""For a connection and a machine, which are not asked."""
Answer = Callable[[float], object]
"""What comes back after so many seconds, or is raised."""


def asked(answer: Answer) -> tuple[object, float]:
    """What is made of such answers in the end, and after how many seconds."""

    async def ask() -> tuple[object, float]:
        clock = RunningClock()
        operations = GuestOperations(NOWHERE, NOWHERE, NOWHERE, Login("ada", "secret"), clock)

        async def once() -> object:
            if isinstance(found := answer(clock.elapsed_s), Exception):
                raise found
            return found

        try:
            return await operations.repeated(once, "the guest did not answer", LIMIT_S), clock.elapsed_s
        except VmwrapperError as error:
            return error, clock.elapsed_s

    return run(ask())


def failed(fault: Fault) -> VsphereFailed:
    return VsphereFailed(fault.value, fault)


@pytest.mark.parametrize("away_s", [1.0, LIMIT_S + 1, PATIENCE_S - 1])
def test_a_server_that_comes_back(away_s: float) -> None:
    found, after_s = asked(lambda at_s: "yes" if at_s > away_s else failed(Fault.UNREACHABLE))
    assert found == "yes"
    assert after_s < away_s + 1


def test_a_server_that_stays_away() -> None:
    found, after_s = asked(lambda _: failed(Fault.UNREACHABLE))
    assert isinstance(found, VsphereFailed)
    assert PATIENCE_S <= after_s <= PATIENCE_S + LIMIT_S + 1


@pytest.mark.parametrize("fault", [Fault.OTHER, Fault.BUSY, Fault.NO_RESOURCES, Fault.WRONG_STATE])
def test_what_is_the_servers_fault_is_not_the_guests(fault: Fault) -> None:
    found, after_s = asked(lambda _: failed(fault))
    assert isinstance(found, VsphereFailed)
    assert after_s == LIMIT_S


@pytest.mark.parametrize("error", [CutOff("no end"), failed(Fault.NOT_READY), failed(Fault.GUEST_FAILED)])
def test_a_guest_that_stays_silent(error: Exception) -> None:
    found, after_s = asked(lambda at_s: failed(Fault.UNREACHABLE) if at_s < 10 else error)
    assert isinstance(found, GuestSilent)
    assert after_s == LIMIT_S


def test_a_guest_that_falls_silent_after_the_server_was_away() -> None:
    async def ask() -> float:
        clock, tries = RunningClock(), 0
        operations = GuestOperations(NOWHERE, NOWHERE, NOWHERE, Login("ada", "secret"), clock)

        async def once() -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise failed(Fault.UNREACHABLE)
            await asyncio.get_running_loop().create_future()

        with pytest.raises(GuestSilent, match="it still runs"):
            await operations.repeated(once, "the guest did not answer", LIMIT_S)
        return clock.elapsed_s

    assert run(ask()) <= 3 * LIMIT_S


def test_a_guest_whose_disk_is_full_is_not_asked_for_hours() -> None:
    tries = []

    def answer(at_s: float) -> Exception:
        tries.append(at_s)
        return failed(Fault.REFUSED_FILE if len(tries) % 2 else Fault.NOT_READY)

    found, after_s = asked(answer)
    assert isinstance(found, GuestError)
    assert not isinstance(found, GuestSilent)
    assert (len(tries), after_s < 5) == (5, True)


@pytest.mark.parametrize(
    ("fault", "meant"),
    [
        (Fault.GONE, MachineExited),
        (Fault.GUEST_FORBIDS, GuestError),
        (Fault.FORBIDDEN, VsphereFailed),
        (Fault.NOT_TRUSTED, VsphereFailed),
        (Fault.GUEST_REFUSED, JobError),
    ],
)
def test_what_no_other_try_would_change(fault: Fault, meant: type[VmwrapperError]) -> None:
    found, after_s = asked(lambda _: failed(fault))
    assert type(found) is meant
    assert after_s < LIMIT_S


def test_what_never_comes_back_ends_at_its_limit() -> None:
    async def ask() -> None:
        operations = GuestOperations(NOWHERE, NOWHERE, NOWHERE, Login("ada", "secret"), RunningClock())
        forever = asyncio.get_running_loop().create_future
        with pytest.raises(GuestSilent, match="it still runs"):
            await operations.repeated(forever, "the guest did not answer", LIMIT_S)

    run(ask())
