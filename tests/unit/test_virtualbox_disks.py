"""How the disks of a machine are brought in order, with files that have what VirtualBox's headers have."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from lxml import etree

from vmwrapper.errors import HostDiskFailed
from vmwrapper.hypervisor.interface import MachineIdentity
from vmwrapper.hypervisor.virtualbox import disks
from vmwrapper.hypervisor.virtualbox.place import Place, place_of

NONE = UUID(int=0)
BASE = Path("/images/base.img")
NAMESPACE = "http://www.virtualbox.org/"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = place_of(MachineIdentity("p", "r", str(tmp_path)), tmp_path)
    (place.folder / "Snapshots").mkdir(parents=True)
    return place


def make(folder: Path, name: str, parent: UUID) -> UUID:
    """A disk; its UUID."""
    uuid = uuid4()
    file = folder / name.format(f"{{{uuid}}}")
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytearray(512)
    header[0x40:0x44] = 0xBEDA107F.to_bytes(4, "little")
    header[0x188:0x198] = uuid.bytes_le
    header[0x1A8:0x1B8] = parent.bytes_le
    file.write_bytes(header)
    return uuid


def settings(*attached: UUID, states: tuple[str, ...] = (), cd: UUID | None = None) -> str:
    """Each but the last of these as in a snapshot, and a list that is of no use."""
    devices = [f'<AttachedDevice type="HardDisk"><Image uuid="{{{uuid}}}"/></AttachedDevice>' for uuid in attached]
    if cd:
        devices.append(f'<AttachedDevice type="DVD"><Image uuid="{{{cd}}}"/></AttachedDevice>')
    snapshots = "".join(f'<Snapshot stateFile="Snapshots/{state}">{devices[0]}</Snapshot>' for state in states)
    return (
        f'<?xml version="1.0"?><!-- by VirtualBox --><VirtualBox xmlns="{NAMESPACE}" version="1.20-linux">'
        f'<Machine uuid="{{{uuid4()}}}" name="m"><Description>d</Description>'
        f'<MediaRegistry><HardDisks><HardDisk uuid="{{{uuid4()}}}" location="gone.vdi"/></HardDisks></MediaRegistry>'
        f"{snapshots}<Hardware>{''.join(devices)}</Hardware></Machine></VirtualBox>"
    )


def hard_disks(place: Place) -> Iterator[etree._Element]:
    return etree.fromstring(place.settings.read_bytes()).iter(f"{{{NAMESPACE}}}HardDisk")


def listed(place: Place) -> list[tuple[int, str, str, str | None]]:
    """Of each disk in the list: how deep it is, its UUID, its location and its type."""
    found = []
    for element in hard_disks(place):
        depth = sum(above.tag == element.tag for above in element.iterancestors())
        found.append((depth, element.get("uuid").strip("{}"), element.get("location"), element.get("type")))
    return found


def test_the_list_is_what_the_headers_say(place: Place) -> None:
    base = uuid4()
    root = make(place.folder, "root.vdi", base)
    child = make(place.folder, "Snapshots/{}.vdi", root)
    scratch = make(place.folder, "scratch.vdi", NONE)
    unneeded = make(place.folder, "Snapshots/{}.vdi", child)
    place.settings.write_text(settings(root, child, scratch))
    disks.put_in_order(place, BASE, "VMDK")
    assert listed(place) == [
        (0, str(base), str(BASE), "Normal"),
        (1, str(root), "root.vdi", None),
        (2, str(child), f"Snapshots/{{{child}}}.vdi", None),
        (0, str(scratch), "scratch.vdi", "Normal"),
    ]
    assert str(unneeded) not in place.settings.read_text()
    assert "<Description>d</Description>" in place.settings.read_text()
    assert place.settings.read_text().count("MediaRegistry>") == 2


def test_the_base_has_its_own_format(place: Place) -> None:
    place.settings.write_text(settings(make(place.folder, "root.vdi", uuid4())))
    disks.put_in_order(place, BASE, "VMDK")
    assert [element.get("format") for element in hard_disks(place)] == ["VMDK", "VDI"]


def test_what_can_not_be_read_is_not_taken_for_absent(place: Place) -> None:
    (place.folder / "root.vdi").mkdir()
    place.settings.write_text(settings())
    with pytest.raises(HostDiskFailed, match=r"root\.vdi"):
        disks.put_in_order(place, BASE, "VDI")


def test_two_ways_from_one_snapshot(place: Place) -> None:
    root = make(place.folder, "root.vdi", uuid4())
    children = [make(place.folder, "Snapshots/{}.vdi", root) for _ in range(2)]
    place.settings.write_text(settings(*children))
    disks.put_in_order(place, BASE, "VMDK")
    assert [(depth, uuid) for depth, uuid, *_ in listed(place)][1:] == [
        (1, str(root)),
        (2, str(children[0])),
        (2, str(children[1])),
    ]


@pytest.mark.parametrize("is_attached", [True, False])
def test_a_disk_that_was_just_merged_comes_back(place: Place, *, is_attached: bool) -> None:
    """That is, its second name; whether the settings name it or only a disk that is built on it."""
    root = make(place.folder, "root.vdi", uuid4())
    merged = make(place.second_names, "Snapshots/{}.vdi", root)
    child = make(place.folder, "Snapshots/{}.vdi", merged)
    place.settings.write_text(settings(*[merged] * is_attached, child))
    disks.put_in_order(place, BASE, "VMDK")
    assert (place.folder / f"Snapshots/{{{merged}}}.vdi").exists()
    assert [uuid for _, uuid, *_ in listed(place)][1:] == [str(root), str(merged), str(child)]


def test_a_disk_that_nobody_needs_any_more_stays_away(place: Place) -> None:
    root = make(place.folder, "root.vdi", uuid4())
    merged = make(place.second_names, "Snapshots/{}.vdi", root)
    place.settings.write_text(settings(root))
    disks.put_in_order(place, BASE, "VMDK")
    assert not (place.folder / f"Snapshots/{{{merged}}}.vdi").exists()


def test_a_cd(place: Place) -> None:
    cd = uuid4()
    place.settings.write_text(settings(cd=cd))
    disks.put_in_order(place, Path("/images/base.iso"), None)
    [image] = etree.fromstring(place.settings.read_bytes()).iterfind(f".//{{{NAMESPACE}}}DVDImages/*")
    assert (image.get("uuid"), image.get("location")) == (f"{{{cd}}}", "/images/base.iso")


@pytest.mark.parametrize("text", ["", "<VirtualBox", "<VirtualBox/>", None])
def test_settings_that_make_no_sense_stay(place: Place, text: str | None) -> None:
    make(place.folder, "root.vdi", uuid4())
    if text is not None:
        place.settings.write_text(text)
    disks.put_in_order(place, BASE, "VMDK")
    disks.sweep(place)
    assert (place.settings.read_text() if place.settings.exists() else None) == text
    assert (place.folder / "root.vdi").exists()


def test_parents_that_go_round(place: Place) -> None:
    a = make(place.folder, "root.vdi", NONE)
    b = make(place.folder, "Snapshots/{}.vdi", a)
    header = bytearray((place.folder / "root.vdi").read_bytes())
    header[0x1A8:0x1B8] = b.bytes_le
    (place.folder / "root.vdi").write_bytes(header)
    place.settings.write_text(settings(a))
    disks.put_in_order(place, BASE, "VMDK")
    assert str(a) in [uuid for _, uuid, *_ in listed(place)]


@pytest.mark.parametrize("content", [b"", b"short", bytes(512)])
def test_files_that_are_no_disks(place: Place, content: bytes) -> None:
    root = make(place.folder, "root.vdi", uuid4())
    (place.folder / "scratch.vdi").write_bytes(content)
    place.settings.write_text(settings(root))
    disks.put_in_order(place, BASE, "VMDK")
    assert [uuid for _, uuid, *_ in listed(place)][1:] == [str(root)]


def test_sweeping(place: Place) -> None:
    """What neither the settings nor the last good ones need goes; a file that is no disk is not ours to judge."""
    root = make(place.folder, "root.vdi", uuid4())
    child, good, merged = (make(place.folder, "Snapshots/{}.vdi", root) for _ in range(3))
    for name in ("1.sav", "2.sav", "3.sav"):
        (place.folder / "Snapshots" / name).touch()
    place.settings.write_text(settings(child, states=("1.sav",)))
    place.good_settings.write_text(settings(good, states=("2.sav",)))
    disks.sweep(place)
    left = {path.name for path in (place.folder / "Snapshots").iterdir()}
    assert left == {f"{{{child}}}.vdi", f"{{{good}}}.vdi", "1.sav", "2.sav"}
    assert (place.folder / "root.vdi").exists()
    assert f"{{{merged}}}.vdi" not in left
