"""What a machine is called and where it is, whatever its result and slot are called."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.hypervisor.interface import MachineIdentity, MachineSpec
from vmwrapper.hypervisor.virtualbox.place import is_ours, place_of
from vmwrapper.hypervisor.virtualbox.settings import Hardware

from .fuzzing import fuzzed

SLOT = Path("/client/slots/0/.vmwrapper")
IDENTITY = MachineIdentity("project", "wu_17_0", "/client/slots/0")


def hardware(**changed: object) -> Hardware:
    spec = MachineSpec(
        identity=IDENTITY, image=Path("/base.vdi"), directory=SLOT, memory_mib=512, cpus=2, scratch_mib=64
    )
    kinds = {name: changed.pop(name) for name in ("disk_format", "is_interpreted") if name in changed}
    return Hardware(spec=replace(spec, **changed), **{"disk_format": "VDI", "is_interpreted": False, **kinds})


class TestPlace:
    def test_files(self) -> None:
        place = place_of(IDENTITY, SLOT)
        assert place.folder.parent == SLOT
        assert place.folder.name.startswith("vmwrapper wu_17_0 ")
        assert place.settings == place.folder / f"{place.folder.name}.vbox"
        assert is_ours(place.folder.name)

    def test_a_slot_has_always_the_same_machine(self) -> None:
        other = replace(IDENTITY, result_name="other", project="other")
        assert place_of(other, SLOT).uuid == place_of(IDENTITY, SLOT).uuid

    def test_another_slot_has_another(self) -> None:
        one, other = place_of(IDENTITY, SLOT), place_of(replace(IDENTITY, slot="/client/slots/1"), SLOT)
        assert one.uuid != other.uuid
        assert one.folder.name != other.folder.name

    def test_others_are_not_ours(self) -> None:
        assert not is_ours("Windows 11")
        assert not is_ours("boinc_0123456789abcdef")

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../../etc", "a/b", "a\\b", "-a", "a\nb", "\x1b[2J", "ä" * 300, "{uuid}", "a b'\""]
    )
    def test_hostile_names(self, name: str) -> None:
        self.check(name, "/slot")

    @fuzzed
    @given(st.text(), st.text(alphabet=st.characters()))
    def test_any_names(self, name: str, slot: str) -> None:
        self.check(name, slot)

    def check(self, name: str, slot: str) -> None:
        place = place_of(MachineIdentity("p", name, slot), SLOT)
        assert place.folder.parent == SLOT
        assert len(PurePosixPath(place.folder.name).parts) == 1
        assert len(place.folder.name) < 100
        assert place.folder.name.isascii()
        assert place.folder.name.isprintable()
        assert not set(place.folder.name) & set("/\\:*?\"<>|'")
        assert str(UUID(place.uuid)) == place.uuid
        assert is_ours(place.folder.name)

    def test_a_slot_whose_name_is_no_text(self) -> None:
        assert UUID(place_of(replace(IDENTITY, slot="/slot-\udcff"), SLOT).uuid)


class TestHardware:
    def test_no_road_to_the_host(self) -> None:
        words = list(hardware().options(Path("/console")))
        told = dict(pairwise(words))
        assert told["--nic1"] == "none"
        assert told["--clipboard-mode"] == "disabled"
        assert told["--drag-and-drop"] == "disabled"
        assert told["--vrde"] == "off"
        assert told["--memory"] == "512"
        assert told["--cpus"] == "2"
        assert told["--description"] == str(IDENTITY)
        assert told["--uart-mode1"] == "file"
        assert "/console" in words

    def test_interpreted_only_where_it_must_be(self) -> None:
        assert "interpreter" not in list(hardware().options(Path()))
        assert "interpreter" in list(hardware(is_interpreted=True).options(Path()))

    @pytest.mark.parametrize(
        "changed",
        [{"memory_mib": 513}, {"cpus": 1}, {"scratch_mib": 0}, {"disk_format": None}, {"is_interpreted": True}],
    )
    def test_a_guest_does_not_fit_other_hardware(self, changed: dict[str, object]) -> None:
        assert hardware(**changed).digest() != hardware().digest()

    @pytest.mark.parametrize(
        "changed", [{"niceness": 5}, {"directory": Path("/moved")}, {"identity": replace(IDENTITY, result_name="b")}]
    )
    def test_a_guest_fits_where_only_its_surroundings_are_others(self, changed: dict[str, object]) -> None:
        assert hardware(**changed).digest() == hardware().digest()
