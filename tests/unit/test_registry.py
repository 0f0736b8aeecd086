"""Which hypervisor a job gets."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from vmwrapper.clock import RunningClock
from vmwrapper.errors import JobError, NoUsableHypervisor
from vmwrapper.hypervisor.interface import Abilities, Hypervisor, ProbeResult
from vmwrapper.hypervisor.memory.backend import MemoryHypervisor
from vmwrapper.hypervisor.registry import Needs, Registry, Wanted, needs_of, why_unfit
from vmwrapper.job.model import SelfRunning, Task


class Probed(MemoryHypervisor):
    """One that was tried out, with this result."""

    def __init__(
        self,
        name: str,
        *,
        usable: bool = True,
        accelerated: bool = True,
        needs_login: bool = False,
        shows_password: bool = False,
        guest_commands: bool = True,
        shared_folder: bool = True,
        suffix: str = ".memory",
    ) -> None:
        super().__init__()
        self.name = name
        self.image_suffixes = (suffix,)
        self._usable = usable
        self._accelerated = accelerated
        self._changed = {
            "needs_login": needs_login,
            "shows_password": shows_password,
            "guest_commands": guest_commands,
            "shared_folder": shared_folder,
        }
        self.probes = 0

    @property
    def abilities(self) -> Abilities:
        return replace(super().abilities, **self._changed)

    async def probe(self, clock: RunningClock) -> ProbeResult:
        self.probes += 1
        result = await super().probe(clock)
        reasons = () if self._usable else (f"{self.name} is broken",)
        return replace(result, name=self.name, usable=self._usable, accelerated=self._accelerated, reasons=reasons)


async def chosen(*hypervisors: Hypervisor, wanted: Wanted | None = None) -> str:
    return (await Registry(hypervisors).choose(wanted or Wanted(), RunningClock())).name


@pytest.mark.parametrize(
    ("first_is_accelerated", "second_is_accelerated", "expected"),
    [(True, True, "first"), (True, False, "first"), (False, True, "second"), (False, False, "first")],
)
async def test_the_first_accelerated_one_is_best_then_the_first(
    *, first_is_accelerated: bool, second_is_accelerated: bool, expected: str
) -> None:
    first = Probed("first", accelerated=first_is_accelerated)
    assert await chosen(first, Probed("second", accelerated=second_is_accelerated)) == expected


async def test_none_is_tried_out_after_an_accelerated_one() -> None:
    second = Probed("second")
    assert await chosen(Probed("first"), second) == "first"
    assert second.probes == 0


async def test_one_that_can_not_be_used_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert await chosen(Probed("first", usable=False), Probed("second")) == "second"
    assert "Using second: it has hardware acceleration; first not, since first is broken" in caplog.text


async def test_where_none_can_be_used_all_say_why() -> None:
    with pytest.raises(NoUsableHypervisor, match="first is broken; second not, since it is unfit"):
        await chosen(
            Probed("first", usable=False),
            Probed("second"),
            wanted=Wanted(unfit=lambda one: "it is unfit" if one.name == "second" else None),
        )


async def test_the_one_that_has_checkpoints_is_best(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    both = Probed("first"), Probed("second", accelerated=False)
    assert await chosen(*both, wanted=Wanted(earlier="second")) == "second"
    assert "Using second: an earlier episode has left checkpoints with it" in caplog.text
    gone = Probed("first"), Probed("second", usable=False)
    assert await chosen(*gone, wanted=Wanted(earlier="second")) == "first"


async def test_a_name_leaves_no_choice() -> None:
    slow = Probed("slow", accelerated=False)
    assert await chosen(Probed("first"), slow, wanted=Wanted(name="slow", earlier="first")) == "slow"
    with pytest.raises(JobError, match="no backend 'third' in this version: it has first, slow"):
        await chosen(Probed("first"), slow, wanted=Wanted(name="third"))


async def test_one_that_shows_passwords_has_to_be_asked_for_by_its_name() -> None:
    shows = Probed("shows", shows_password=True)
    assert await chosen(shows, Probed("slow", accelerated=False)) == "slow"
    assert await chosen(shows, Probed("slow"), wanted=Wanted(name="shows")) == "shows"


async def test_where_all_are_unfit_one_is_chosen_to_say_what_is_wrong() -> None:
    assert await chosen(Probed("first"), Probed("second"), wanted=Wanted(unfit=lambda _: "it is unfit")) == "first"


def test_one_that_commands_no_guests_is_chosen_for_no_job() -> None:
    registry = Registry((Probed("mute", guest_commands=False), Probed("first")))
    assert [one.name for one in registry.candidates(None)] == ["first"]
    with pytest.raises(JobError, match="no backend 'mute' in this version: it has first"):
        registry.candidates("mute")
    assert len(registry.named(None)) == 2


def test_who_needs_a_login_or_another_image_is_unfit(tmp_path: Path) -> None:
    (tmp_path / "disk.vdi").touch()
    unfit = partial(why_unfit, Task(line=1, vm="disk", innerjob="program"), tmp_path.joinpath)
    assert unfit(Probed("first", suffix=".vdi")) is None
    assert unfit(Probed("first", suffix=".vdi", needs_login=True)) == "the job has no <password>"
    assert unfit(Probed("first", suffix=".vmguest")) == "it runs no image like disk"
    named = partial(why_unfit, Task(line=1, vm="disk.vdi", innerjob="program", password="x"), tmp_path.joinpath)
    assert named(Probed("first", suffix=".vdi", needs_login=True)) is None
    assert named(Probed("first", suffix=".vmguest")) == "it runs no image like disk.vdi"


def test_a_guest_that_works_by_itself_needs_a_shared_folder_and_no_login(tmp_path: Path) -> None:
    (tmp_path / "guest.memory").touch()
    task = Task(line=1, vm="guest", self_running=SelfRunning(completion_file="done"))
    sharing, mute = Probed("sharing", guest_commands=False, needs_login=True), Probed("mute", shared_folder=False)
    assert needs_of(task) == Needs(shared_folder=True)
    assert why_unfit(task, tmp_path.joinpath, sharing) is None
    registry = Registry((mute, sharing))
    assert registry.candidates(None, Needs(shared_folder=True)) == [sharing]
    with pytest.raises(JobError, match=r"backend 'mute' can share no folder .*: sharing can"):
        registry.candidates("mute", Needs(shared_folder=True))
    with pytest.raises(JobError, match="no backend 'xen' in this version"):
        registry.candidates("xen", Needs(shared_folder=True))
    with pytest.raises(JobError, match="no backend can share a folder with a guest that works by itself"):
        Registry((mute,)).candidates(None, Needs(shared_folder=True))
