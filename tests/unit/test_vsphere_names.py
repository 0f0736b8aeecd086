"""How machines of vSphere's are named: in image files, by slots, in URLs, and what a snapshot's description says."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from vmwrapper.errors import JobError, SnapshotUnusable
from vmwrapper.hypervisor.interface import MachineIdentity, Snapshot
from vmwrapper.hypervisor.vmware.vsphere.datastore_file import url_of
from vmwrapper.hypervisor.vmware.vsphere.faults import VsphereFailed
from vmwrapper.hypervisor.vmware.vsphere.image import By, base_image
from vmwrapper.hypervisor.vmware.vsphere.place import IDENTITY_KEY, identity_of, mark_of, place_of, uuid_of
from vmwrapper.hypervisor.vmware.vsphere.snapshots import saved
from vmwrapper.hypervisor.vmware.vsphere.transfer import meant

OWNER, OTHER = "a" * 32, "b" * 32


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("DC0/vm/linux", By.PATH),
        ("/DC 0/vm/lïnux", By.PATH),
        ("[store 1] folder/name.vmx", By.FILE),
        ("5d1c7f3e-8f0f-4c53-9d0b-6a2f0c4f7e11", By.UUID),
    ],
)
def test_a_base_machine_is_named(tmp_path: Path, name: str, by: By) -> None:
    file = tmp_path / "guest.vsphere"
    file.write_text(f'machine = "{name}"\n')
    image = base_image(file)
    assert (image.name, image.by) == (name, by)
    assert str(file) in str(image)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        bytes(4096),
        b"\xff",
        b"machine = 7",
        b'machine = ""',
        b'machine = "a\\nb"',
        b'machine = "a"\nother = 1',
        b'machine = "' + b"x" * 2000 + b'"',
        b"# " + b"x" * 5000 + b'\nmachine = "a"',
        b"x = " + b"[" * 4000,
    ],
)
def test_what_names_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "guest.vsphere"
    file.write_bytes(content)
    with pytest.raises(JobError, match=str(file)):
        base_image(file)


def test_a_slot_has_one_machine_and_other_slots_and_computers_have_others() -> None:
    first, again, other, elsewhere = (
        place_of(MachineIdentity("p", result, slot), owner)
        for result, slot, owner in (
            ("r", "/s/0", OWNER),
            ("q", "/s/0", OWNER),
            ("r", "/s/1", OWNER),
            ("r", "/s/0", OTHER),
        )
    )
    assert first.uuid == again.uuid == uuid_of(Path("/s/0"), OWNER)
    assert len({first.uuid, other.uuid, elsewhere.uuid}) == 3
    assert len({first.name, other.name, elsewhere.name}) == 3


def test_the_name_has_no_odd_letters() -> None:
    place = place_of(MachineIdentity("p", "r/%2f\x1b☃" + "x" * 500, "/s"), OWNER)
    assert place.name.isascii()
    assert place.name.isprintable()
    assert "/" not in place.name
    assert len(place.name) < 80


def test_a_mark_is_ours_only_of_this_installation() -> None:
    def marked(*marks: object) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(key="other", value="x"),
            *(SimpleNamespace(key=IDENTITY_KEY, value=one) for one in marks),
        ]

    identity = str(MachineIdentity("p", "r", "/s"))
    ours, theirs = mark_of(identity, OWNER), mark_of(identity, OTHER)
    assert identity_of(marked(ours), OWNER) == identity
    for strange in ([], [7], [""], [identity], [theirs], [ours[1:]], [ours, theirs]):
        assert identity_of(marked(*strange), OWNER) is None


@pytest.mark.parametrize(
    ("url", "host", "port", "expected"),
    [
        ("https://*/guestFile?id=1&token=a", "esx", 443, "https://esx:443/guestFile?id=1&token=a"),
        ("https://*/guestFile?id=1", "esx", 8443, "https://esx:8443/guestFile?id=1"),
        ("https://*:444/x", "esx", 8443, "https://esx:444/x"),
        ("https://other/x", "esx", 8443, "https://other/x"),
        ("https://other:1/x", "esx", 8443, "https://other:1/x"),
        ("https://*/x", "::1", 443, "https://[::1]:443/x"),
    ],
)
def test_a_star_stands_for_the_host_that_one_is_connected_to(url: str, host: str, port: int, expected: str) -> None:
    assert meant(url, host, port) == expected


@pytest.mark.parametrize(
    "url", ["http://*/x", "ftp://host/x", "/x", "", "https:///x", "https://host:x/", "https://[x/"]
)
def test_no_transfer_goes_without_tls(url: str) -> None:
    with pytest.raises(VsphereFailed, match="https"):
        meant(url, "esx", 443)


@pytest.mark.parametrize(
    "description", ["", "{}", "[", "7", "[" * 100_000, '{"name": "x", "made_by": {}}', '{"name": 1, "made_by": {}}']
)
def test_a_snapshot_whose_description_makes_no_sense(description: str) -> None:
    with pytest.raises(SnapshotUnusable):
        saved(Snapshot(1, description))


def test_a_snapshot_that_was_described() -> None:
    description = '{"name": "vmwrapper 1 ab", "made_by": {"server": "x"}}'
    assert saved(Snapshot(1, description)).snapshot().number == 1


def test_where_a_file_of_a_datastore_is_to_be_had() -> None:
    assert url_of("[local ds] a & b/screen 0.png", "folder/DC0") == (
        "https://*/folder/a%20%26%20b/screen%200.png?dcPath=folder%2FDC0&dsName=local+ds"
    )


@pytest.mark.parametrize("name", ["", "screen.png", "[ds]", "[ds] ", "[ds] /etc/passwd", "[] x", "[ds] a\nb"])
def test_what_names_no_file_of_a_datastore(name: str) -> None:
    with pytest.raises(VsphereFailed):
        url_of(name, "DC0")
