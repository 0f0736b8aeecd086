"""Which hypervisor a job gets."""

from dataclasses import replace

import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.errors import JobError
from vmwrapper.hypervisor.interface import Abilities
from vmwrapper.hypervisor.memory import MemoryHypervisor
from vmwrapper.hypervisor.registry import Needs, Registry


class WithLogin(MemoryHypervisor):
    name = "with login"

    @property
    def abilities(self) -> Abilities:
        return replace(super().abilities, needs_login=True)


class WithoutCommands(MemoryHypervisor):
    name = "without commands"

    @property
    def abilities(self) -> Abilities:
        return replace(super().abilities, guest_commands=False, shared_folder=False)


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


@pytest.mark.parametrize(("wanted", "found"), [(None, ["with login", "memory"]), ("with login", ["with login"])])
def test_a_guest_that_works_by_itself_needs_a_shared_folder_and_no_login(
    registry: Registry, wanted: str | None, found: list[str]
) -> None:
    assert [one.name for one in registry.candidates(wanted, Needs(shared_folder=True))] == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("without commands", "backend 'without commands' can share no folder .*: with login, memory can"),
        ("xen", "no backend 'xen' in this version"),
    ],
)
def test_one_that_shares_no_folder_is_not_chosen_for_it(registry: Registry, wanted: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        registry.candidates(wanted, Needs(shared_folder=True))


async def test_where_none_shares_a_folder_that_is_said() -> None:
    with pytest.raises(JobError, match="no backend can share a folder with a guest that works by itself"):
        Registry((WithoutCommands(),)).candidates(None, Needs(shared_folder=True))
