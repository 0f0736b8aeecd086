"""What `vmwrapper gc` makes of what hypervisors still have."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vmwrapper import cli
from vmwrapper.boinc.slot_lock import LOCK_FILE, is_held
from vmwrapper.checkpoint import Checkpoint, Reached, Record, write_record
from vmwrapper.clock import RunningClock
from vmwrapper.errors import ProcessFailed
from vmwrapper.folders import MACHINE_FOLDER, RECORD_FILE
from vmwrapper.hypervisor.interface import Leftover, MachineIdentity, Snapshot, slot_in
from vmwrapper.hypervisor.memory.backend import MemoryHypervisor
from vmwrapper.hypervisor.virtualbox import left, trial
from vmwrapper.hypervisor.virtualbox.place import place_of, slot_of
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage
from vmwrapper.leftovers import Files, Finding, State, clear

HOLDS = "import sys; from pathlib import Path; from vmwrapper.boinc.slot_lock import slot_lock\n"
HOLDS += "with slot_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
REACHED = Reached(
    cpu_time_s=1.0,
    elapsed_s=1.0,
    fraction_of_task=None,
    program_ran_s=1.0,
    floating_point_operations=0.0,
    integer_operations=0.0,
    guest_cpu_time_s=0.0,
)


@dataclass(eq=False)
class Littered(MemoryHypervisor):
    """A hypervisor that has machines of these slots."""

    slots: Sequence[Path] = ()
    name: str = "littered"  # type: ignore[misc]
    failure: str = ""
    removal_fails: str = ""
    removed: list[Path] = field(default_factory=list)

    async def leftovers(self) -> Sequence[Leftover]:
        if self.failure:
            raise ProcessFailed(self.failure)
        return [self._leftover(slot) for slot in self.slots]

    def _leftover(self, slot: Path) -> Leftover:
        async def remove() -> None:
            if self.removal_fails:
                raise ProcessFailed(self.removal_fails)
            if slot.is_dir():
                assert (slot / LOCK_FILE).exists()  # no job can begin meanwhile
            self.removed.append(slot)

        return Leftover(what=f"the machine of {slot.name}", slot=slot, files=slot / MACHINE_FOLDER, remove=remove)


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    """One in which a job was killed."""
    slot = tmp_path / "slot"
    (slot / MACHINE_FOLDER).mkdir(parents=True)
    (slot / MACHINE_FOLDER / "disk").write_bytes(b"disk")
    (slot / LOCK_FILE).touch()
    return slot


def has_checkpoint(slot: Path) -> None:
    write_record(
        slot,
        Record(job="job", checkpoints=(Checkpoint(reached=REACHED, snapshot=Snapshot(1, "{}"), backend="memory"),)),
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@contextmanager
def held(slot: Path) -> Iterator[None]:
    """As by a wrapper at work."""
    argv = [sys.executable, "-c", HOLDS, slot]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield
        assert process.stdin
        process.stdin.close()


async def test_without_leave_nothing_is_changed(slot: Path) -> None:
    hypervisor = Littered(slots=[slot])
    before = names(slot)
    [finding] = await clear([hypervisor], removes=False)
    assert str(finding) == "would remove: the machine of slot, with its files"
    assert (hypervisor.removed, names(slot)) == ([], before)


async def test_with_leave_it_is_removed_with_its_files(slot: Path) -> None:
    hypervisor = Littered(slots=[slot])
    [finding] = await clear([hypervisor], removes=True)
    assert str(finding) == "removed: the machine of slot, with its files"
    assert (hypervisor.removed, names(slot)) == ([slot], set())


async def test_files_that_a_checkpoint_needs_stay(slot: Path) -> None:
    has_checkpoint(slot)
    hypervisor = Littered(slots=[slot])
    [finding] = await clear([hypervisor], removes=True)
    assert (finding.state, finding.files) == (State.REMOVED, Files.KEPT)
    assert (hypervisor.removed, names(slot)) == ([slot], {MACHINE_FOLDER, "disk", RECORD_FILE})


async def test_of_a_running_job_nothing_is_touched(slot: Path) -> None:
    hypervisor = Littered(slots=[slot])
    with held(slot):
        assert await clear([hypervisor], removes=True) == []
        assert is_held(slot)
    assert hypervisor.removed == []
    assert "disk" in names(slot)


async def test_a_job_that_begins_between_look_and_removal_keeps_its_machine(
    slot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmwrapper.leftovers.is_held", lambda _: False)
    hypervisor = Littered(slots=[slot])
    with held(slot):
        [finding] = await clear([hypervisor], removes=True)
    assert finding.state is State.NOT_REMOVED
    assert "another vmwrapper is at work" in finding.reason
    assert hypervisor.removed == []


def test_where_it_cant_be_told_the_lock_counts_as_held(slot: Path) -> None:
    (slot / LOCK_FILE).unlink()
    assert not is_held(slot)
    (slot / LOCK_FILE).mkdir()
    assert is_held(slot)


async def test_a_slot_may_be_gone(tmp_path: Path) -> None:
    hypervisor = Littered(slots=[tmp_path / "gone"])
    [finding] = await clear([hypervisor], removes=True)
    assert str(finding) == "removed: the machine of gone"
    assert hypervisor.removed == [tmp_path / "gone"]
    assert names(tmp_path) == set()


async def test_no_link_is_followed(slot: Path, tmp_path: Path) -> None:
    (slot / MACHINE_FOLDER).rename(tmp_path / "precious")
    (slot / MACHINE_FOLDER).symlink_to(tmp_path / "precious")
    [finding] = await clear([Littered(slots=[slot])], removes=True)
    assert (finding.state, finding.files) == (State.REMOVED, Files.NONE)
    assert names(tmp_path / "precious") == {"disk"}
    (slot / MACHINE_FOLDER).unlink()
    (slot / MACHINE_FOLDER).mkdir()
    (slot / MACHINE_FOLDER / "machine").symlink_to(tmp_path / "precious")
    [finding] = await clear([Littered(slots=[slot])], removes=True)
    assert finding.files is Files.REMOVED
    assert names(tmp_path / "precious") == {"disk"}


async def test_what_fails_keeps_no_other_from_being_removed(slot: Path, tmp_path: Path) -> None:
    hypervisors = [
        Littered(failure="no\nanswer"),
        Littered(slots=[slot], removal_fails="stuck"),
        Littered(slots=[slot]),
    ]
    assert list(map(str, await clear(hypervisors, removes=True))) == [
        "not removed: what littered may have: no; answer",
        "not removed: the machine of slot: stuck",
        "removed: the machine of slot, with its files",
    ]


async def test_a_record_that_cant_be_read_keeps_all(slot: Path) -> None:
    (slot / RECORD_FILE).mkdir()
    hypervisor = Littered(slots=[slot])
    [finding] = await clear([hypervisor], removes=True)
    assert (finding.state, hypervisor.removed) == (State.NOT_REMOVED, [])


def gc(monkeypatch: pytest.MonkeyPatch, *hypervisors: MemoryHypervisor, words: Sequence[str] = ()) -> int:
    monkeypatch.setattr(cli, "all_hypervisors", lambda: hypervisors)
    return cli.main(["gc", *words])


def test_the_command_says_it_line_by_line(
    slot: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gc(monkeypatch, Littered(slots=[slot])) == 0
    assert gc(monkeypatch, Littered(slots=[slot]), words=["--yes"]) == 0
    assert gc(monkeypatch, MemoryHypervisor(), words=["--yes"]) == 0
    assert gc(monkeypatch, Littered(slots=[slot]), MemoryHypervisor(), words=["--backend", "memory"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "would remove: the machine of slot, with its files",
        "removed: the machine of slot, with its files",
        "nothing is left over",
        "nothing is left over",
    ]


def test_the_command_ends_with_75_where_something_could_not_be_removed(
    slot: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hypervisor = Littered(slots=[slot], removal_fails="stuck")
    assert gc(monkeypatch, hypervisor, words=["--yes", "--json"]) == 75
    [told] = json.loads(capsys.readouterr().out)
    assert told == {
        "hypervisor": "littered",
        "state": "not removed",
        "what": "the machine of slot",
        "slot": str(slot),
        "files": "none",
        "reason": "stuck",
    }


def test_a_finding_of_nothing_is_valid_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gc(monkeypatch, MemoryHypervisor(), words=["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("slot_name", ["slot", "a slot", "a /slot"])
@pytest.mark.parametrize("project", ["project", "a /project"])
def test_a_slot_is_found_in_an_identity(tmp_path: Path, slot_name: str, project: str) -> None:
    slot = tmp_path / slot_name
    slot.mkdir(parents=True)
    assert slot_in(str(MachineIdentity(project, "result", str(slot)))) == slot


@pytest.mark.parametrize("text", ["", "vmwrapper", "vmwrapper a b", "vmwrapper a b relative", "my a b /slot"])
def test_other_texts_are_no_identities(text: str) -> None:
    assert slot_in(text) is None


def test_a_slot_that_is_gone_is_found_in_an_identity() -> None:
    assert slot_in("vmwrapper project result /gone slot") == Path("/gone slot")


def test_a_virtual_machine_is_ours_only_in_the_folder_of_its_slot() -> None:
    place = place_of(MachineIdentity("p", "r", "/a/../slots/3"), Path("/slots/3/.vmwrapper"))
    assert slot_of(place.uuid, place.settings) == Path("/slots/3")
    for other in ("/slots/4/.vmwrapper", "/slots/3/vmwrapper", "/slots/3/.vmwrapper/x", "/slots/3"):
        assert slot_of(place.uuid, Path(other, place.folder.name, place.settings.name)) is None


TRIAL = "vmwrapper trial 7c7e0b9c-5d5a-4c3e-8f52-0d1a34a1c111"


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        (f"/tmp/vmwrapper-trial-x/{TRIAL}/{TRIAL}.vbox", "/tmp/vmwrapper-trial-x"),
        (f"/home/me/{TRIAL}/{TRIAL}.vbox", None),
        ("/tmp/vmwrapper-trial-x/vmwrapper trial mine/mine.vbox", None),
        ("/tmp/vmwrapper-trial-x/mine/mine.vbox", None),
    ],
)
def test_a_trial_is_known_by_its_folder_and_name(settings: str, folder: str | None) -> None:
    assert trial.folder_of(Path(settings)) == (folder and Path(folder))


async def test_a_trial_is_locked_as_long_as_somebody_tries() -> None:
    seen = []

    async def manage(command: str, *words: object, **_: float) -> str:
        if command == "createvm":
            name, folder = (str(words[words.index(option) + 1]) for option in ("--name", "--basefolder"))
            settings = Path(folder, name, f"{name}.vbox")
            seen.append((trial.folder_of(settings) == Path(folder), Path(folder, LOCK_FILE).exists()))
        return ""

    assert await trial._start(manage, ["false"], RunningClock()) == "it said nothing"  # type: ignore[arg-type]
    assert seen == [(True, True)]


async def test_a_description_passes_for_no_machine(tmp_path: Path) -> None:
    """One whose slot is real, but whose UUID is another's; and what VirtualBox says of those that it can't read."""
    real = place_of(MachineIdentity("p", "r", str(tmp_path / "real")), tmp_path / "real" / MACHINE_FOLDER)
    claimed = place_of(MachineIdentity("p", "r", str(tmp_path / "claimed")), tmp_path / "claimed" / MACHINE_FOLDER)
    foreign = "01234567-89ab-4cde-8f01-23456789abcd"
    said = f"""
Name:                        mine
UUID:                        {foreign}
Config file:                 /home/me/mine/mine.vbox
Description:
vmwrapper p r {claimed.folder.parent.parent}
UUID:                        {foreign}
Config file:                 {claimed.settings}

Name:            <inaccessible!>
UUID:            {real.uuid}
Config file:     {real.settings}
Access error details:

"""
    manage = tmp_path / "VBoxManage"
    (tmp_path / "vms").write_text(said)
    manage.write_text(f'#!/bin/sh\n[ "$3" != vms ] || cat {tmp_path}/vms\n')
    manage.chmod(0o755)
    [leftover] = await left.found(VBoxManage(manage))
    assert leftover.slot == tmp_path / "real"
    assert leftover.what.endswith("whose files are gone")


def test_findings_are_told_in_one_line() -> None:
    finding = Finding(hypervisor="h", state=State.WOULD_REMOVE, what="this", files=Files.KEPT)
    assert str(finding) == "would remove: this; its files stay, since its job can go on from a checkpoint"
