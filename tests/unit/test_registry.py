"""Which hypervisor a job gets."""

from dataclasses import replace

import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.errors import JobError
from vmwrapper.hypervisor.interface import Abilities
from vmwrapper.hypervisor.memory import MemoryHypervisor
from vmwrapper.hypervisor.registry import Registry


class WithLogin(MemoryHypervisor):
    name = "with login"

    @property
    def abilities(self) -> Abilities:
        return replace(super().abilities, needs_login=True)


class WithoutCommands(MemoryHypervisor):
    name = "without commands"

    @property
    def abilities(self) -> Abilities:
        return replace(super().abilities, guest_commands=False)


@pytest.fixture
def registry() -> Registry:
    return Registry((WithoutCommands(), WithLogin(), MemoryHypervisor()))


async def test_one_that_needs_a_login_is_chosen_by_its_name_only(registry: Registry) -> None:
    assert (await registry.choose(None, RunningClock())).name == "memory"
    assert (await registry.choose("with login", RunningClock())).name == "with login"


def test_one_that_commands_no_guests_is_chosen_for_no_job(registry: Registry) -> None:
    assert [one.name for one in registry.candidates(None)] == ["memory"]
    with pytest.raises(JobError, match="no backend 'without commands' in this version: it has with login, memory"):
        registry.candidates("without commands")
    assert len(registry.named(None)) == 3
