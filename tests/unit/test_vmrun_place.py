"""Where a machine is, what it consists of, and whose it is, whatever its result and slot are called."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmwrapper.guest
from vmwrapper.hypervisor.interface import MachineIdentity, MachineSpec
from vmwrapper.hypervisor.vmware.vmrun.image import BaseImage
from vmwrapper.hypervisor.vmware.vmrun.left import listed
from vmwrapper.hypervisor.vmware.vmrun.place import Place, place_of, slot_of
from vmwrapper.hypervisor.vmware.vmrun.settings import SCRATCH_UUID, Hardware
from vmwrapper.hypervisor.vmware.vmrun.vmx import vmx_text, vmx_values

from .fuzzing import fuzzed

SLOT = Path("/client/slots/0")
IDENTITY = MachineIdentity("project", "wu_17_0", str(SLOT))
IMAGE = BaseImage(
    disk=Path("/base.vmdk"),
    content="01234567",
    sectors=4096,
    place="scsi0:0",
    controller="pvscsi",
    guest_os="debian11-64",
    hardware_version=14,
    efi=False,
)


def place(identity: MachineIdentity = IDENTITY) -> Place:
    return place_of(identity, SLOT / ".vmwrapper")


def hardware(image: BaseImage = IMAGE, **changed: object) -> Hardware:
    spec = MachineSpec(
        identity=IDENTITY, image=Path("/base.vmdk"), directory=SLOT, memory_mib=510, cpus=2, scratch_mib=64
    )
    return Hardware(spec=replace(spec, **changed), image=image)


def values(made: Hardware) -> dict[str, str]:
    return dict(vmx_values(vmx_text(made.values(place()))))


def test_a_slot_has_always_the_same_machine() -> None:
    other = replace(IDENTITY, result_name="other", project="other")
    assert place(other).vmx == place().vmx
    assert place(replace(IDENTITY, slot="/client/slots/1")).vmx != place().vmx


def test_it_is_known_by_its_file() -> None:
    assert slot_of(place().vmx) == SLOT


@pytest.mark.parametrize(
    "vmx",
    [
        "/home/me/vmware/Debian/Debian.vmx",
        f"/client/slots/1/.vmwrapper/{place().folder.name}/machine.vmx",  # the name of another slot's
        f"{place().folder}/other.vmx",
        f"/client/slots/0/x/{place().folder.name}/machine.vmx",
        "machine.vmx",
        "/",
    ],
)
def test_others_are_not_ours(vmx: str) -> None:
    assert slot_of(Path(vmx)) is None


@fuzzed
@given(name=st.text(min_size=1))
def test_whatever_its_result_is_called(name: str) -> None:
    made = place(replace(IDENTITY, result_name=name))
    assert made.folder.parent == SLOT / ".vmwrapper"
    assert made.display_name.isprintable()
    assert len(made.display_name) < 80


def test_no_road_to_the_host() -> None:
    found = values(hardware())
    assert found["ethernet0.present"] == "FALSE"
    assert found["sharedfolder.maxnum"] == "0"
    assert found["isolation.tools.dnd.disable"] == found["isolation.tools.copy.disable"] == "TRUE"
    assert found["serial0.filename"] == "console"
    assert not [value for value in found.values() if "/" in value and "/client/slots/0" not in value]


def test_no_question_waits_for_somebody() -> None:
    found = values(hardware())
    assert found["msg.autoanswer"] == "TRUE"
    assert found["uuid.action"] == "keep"


def test_what_was_asked_for() -> None:
    found = values(hardware())
    assert (found["memsize"], found["numvcpus"]) == ("512", "2")
    assert (found["scsi0:0.filename"], found["scsi0:1.filename"]) == ("root.vmdk", "scratch.vmdk")
    assert found["scsi0.virtualdev"] == "pvscsi"
    assert found["annotation"] == "vmwrapper project wu_17_0 /client/slots/0"


def test_a_scratch_disk_beside_one_of_another_kind() -> None:
    found = values(hardware(replace(IMAGE, place="sata0:0", controller=None)))
    assert (found["sata0.present"], found["sata0:0.filename"]) == ("TRUE", "root.vmdk")
    assert (found["scsi0.virtualdev"], found["scsi0:1.filename"]) == ("lsilogic", "scratch.vmdk")
    assert "scsi0.present" not in values(hardware(replace(IMAGE, place="sata0:0", controller=None), scratch_mib=0))


def test_a_guests_memory_fits_only_the_same() -> None:
    others = [
        hardware(memory_mib=1024),
        hardware(cpus=1),
        hardware(scratch_mib=65),
        hardware(replace(IMAGE, efi=True)),
        hardware(replace(IMAGE, sectors=8192)),
    ]
    assert len({hardware().digest(), *(other.digest() for other in others)}) == 6
    assert hardware(identity=replace(IDENTITY, result_name="x")).digest() == hardware().digest()


def test_the_launcher_knows_the_scratch_disk() -> None:
    assert len(SCRATCH_UUID) == 32
    assert SCRATCH_UUID in Path(vmwrapper.guest.__file__).with_name("launcher.sh").read_text()


def test_the_list_of_what_runs() -> None:
    assert listed(f"Total running VMs: 2\n{place().vmx}\n/other/a b.vmx\n") == [place().vmx, Path("/other/a b.vmx")]
    assert listed("Total running VMs: 0\n") == listed("") == listed("odd\n/x.vmx\n") == []
