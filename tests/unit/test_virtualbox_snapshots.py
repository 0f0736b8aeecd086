"""What VirtualBox's snapshots tell a later episode, which reads it as if a stranger had written it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.digest import digest_of
from vmwrapper.errors import SnapshotUnusable
from vmwrapper.hypervisor.interface import MachineIdentity, Snapshot
from vmwrapper.hypervisor.virtualbox.place import Place, place_of
from vmwrapper.hypervisor.virtualbox.snapshots import Saved, Snapshots, saved
from vmwrapper.hypervisor.virtualbox.vboxmanage import VBoxManage

from .fuzzing import fuzzed

MADE_BY = {"VirtualBox version": "7.2", "processor": "P", "virtual hardware": "0123"}
SAVED = Saved(
    number=3,
    uuid="4d6b53bc-ba4d-4045-abc8-81c50093633e",
    state_file="Snapshots/2026-11-27T02-42-24-469401000Z.sav",
    state_bytes=3,
    state_digest="0123456789abcdef0123456789abcdef",
    made_by=MADE_BY,
)


def described(**changed: object) -> Snapshot:
    told: dict[str, Any] = json.loads(SAVED.snapshot().description)
    return Snapshot(3, json.dumps({name: value for name, value in (told | changed).items() if value is not None}))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = place_of(MachineIdentity("p", "r", str(tmp_path)), tmp_path)
    (place.folder / "Snapshots").mkdir(parents=True)
    return place


def snapshots(place: Place, *earlier: Snapshot) -> Snapshots:
    """Of a machine whose VBoxManage does all that it is told."""
    return Snapshots(VBoxManage("true"), place, made_by=MADE_BY, earlier=earlier)


async def written(place: Place) -> Saved:
    """One whose file is there."""
    file = place.folder / SAVED.state_file
    file.write_bytes(b"abc")
    return replace(SAVED, state_digest=await digest_of(file))


class TestDescription:
    def test_of_ours(self) -> None:
        assert saved(SAVED.snapshot()) == SAVED

    @pytest.mark.parametrize(
        "description",
        [
            "",
            "x",
            "null",
            "[]",
            "{}",
            "3",
            '"a"',
            "[" * 100_000,
            '{"number": 3}',
            "NaN",
            SAVED.snapshot().description[:-1],
        ],
        ids=lambda description: description[:20],
    )
    def test_garbage(self, description: str) -> None:
        with pytest.raises(SnapshotUnusable, match="its description makes no sense"):
            saved(Snapshot(3, description))

    @pytest.mark.parametrize(
        "changed",
        [
            {"uuid": None},
            {"uuid": 3},
            {"uuid": "--all"},
            {"uuid": SAVED.uuid + "\n"},
            {"uuid": SAVED.uuid.upper()},
            {"state_file": None},
            {"state_file": "/etc/shadow"},
            {"state_file": "Snapshots/../../../etc/shadow.sav"},
            {"state_file": "Snapshots/a/b.sav"},
            {"state_file": "Snapshots\\2026.sav"},
            {"state_digest": ["0" * 32]},
            {"state_digest": "0"},
            {"state_bytes": "3"},
            {"state_bytes": True},
            {"made_by": []},
            {"number": 3},
            {"other": "x"},
        ],
        ids=str,
    )
    def test_facts_that_make_no_sense(self, changed: dict[str, object]) -> None:
        with pytest.raises(SnapshotUnusable, match="its description makes no sense"):
            saved(described(**changed))

    @fuzzed
    @given(st.text() | st.dictionaries(st.sampled_from(["uuid", "state_file", "made_by"]), st.text()).map(json.dumps))
    def test_anything(self, description: str) -> None:
        with pytest.raises(SnapshotUnusable):
            saved(Snapshot(3, description))


class TestSnapshots:
    def test_newest_first_and_only_what_makes_sense(self, place: Place) -> None:
        others = [replace(SAVED, number=number).snapshot() for number in (1, 5)]
        assert [one.number for one in snapshots(place, *others, Snapshot(9, "x"), SAVED.snapshot()).all()] == [5, 3, 1]

    def test_forgotten(self, place: Place) -> None:
        forgetful = snapshots(place, SAVED.snapshot())
        forgetful.forget()
        assert forgetful.all() == []

    async def test_restored(self, place: Place) -> None:
        one = await written(place)
        await snapshots(place, one.snapshot()).restore(one.snapshot())

    async def test_unknown(self, place: Place) -> None:
        with pytest.raises(SnapshotUnusable, match="there is no such snapshot"):
            await snapshots(place).restore(SAVED.snapshot())

    async def test_described_otherwise(self, place: Place) -> None:
        one = await written(place)
        with pytest.raises(SnapshotUnusable, match="there is no such snapshot"):
            await snapshots(place, one.snapshot()).restore(SAVED.snapshot())

    @pytest.mark.parametrize("what", MADE_BY)
    async def test_another_machine(self, place: Place, what: str) -> None:
        one = replace(await written(place), made_by=MADE_BY | {what: "other"})
        with pytest.raises(SnapshotUnusable, match=f"its machine had the {what} other, where this one has"):
            await snapshots(place, one.snapshot()).restore(one.snapshot())

    @pytest.mark.parametrize("content", [b"", b"abd", b"abcd"])
    async def test_damaged(self, place: Place, content: bytes) -> None:
        one = await written(place)
        (place.folder / one.state_file).write_bytes(content)
        with pytest.raises(SnapshotUnusable, match=r"its file Snapshots/.*\.sav is damaged"):
            await snapshots(place, one.snapshot()).restore(one.snapshot())

    async def test_lost(self, place: Place) -> None:
        with pytest.raises(SnapshotUnusable, match=r"its file Snapshots/.*\.sav can't be read: No such file"):
            await snapshots(place, SAVED.snapshot()).restore(SAVED.snapshot())

    async def test_virtualbox_will_not(self, place: Place) -> None:
        one = await written(place)
        unwilling = Snapshots(VBoxManage("false"), place, made_by=MADE_BY, earlier=[one.snapshot()])
        with pytest.raises(SnapshotUnusable, match="status 1 from: false"):
            await unwilling.restore(one.snapshot())
