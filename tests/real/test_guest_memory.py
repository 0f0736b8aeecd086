"""Memory that the guest has freed, as the host sees it."""

import asyncio

import pytest

from vmwrapper.hypervisor.interface import MIB, Machine

pytestmark = pytest.mark.qemu

GIVEN_BACK_LIMIT_S = 30.0
RUN_LIMIT_S = 120.0


@pytest.mark.parametrize(
    ("write", "removed_bytes"),
    [
        pytest.param("head -c {} /dev/urandom >/dev/shm/removed", 100 * MIB, id="large pieces"),
        pytest.param("head -c {} /dev/urandom | tee /dev/shm/kept >/dev/shm/removed", 20 * MIB, id="page by page"),
    ],
)
async def test_it_goes_back_to_the_host(machine: Machine, write: str, removed_bytes: int) -> None:
    await machine.guest.run(["sh", "-ec", write.format(removed_bytes)], limit_s=RUN_LIMIT_S)
    before = machine.working_set_bytes()
    await machine.guest.run(["rm", "/dev/shm/removed"], limit_s=RUN_LIMIT_S)
    async with asyncio.timeout(GIVEN_BACK_LIMIT_S):
        while machine.working_set_bytes() > before - 0.8 * removed_bytes:
            await asyncio.sleep(0.1)
