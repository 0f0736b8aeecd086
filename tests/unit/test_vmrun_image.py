"""Base images, which may be hostile: what is taken from them, and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.errors import JobError
from vmwrapper.hypervisor.vmware.vmrun.disks import Parent, make_disk, make_overlay
from vmwrapper.hypervisor.vmware.vmrun.image import base_image

from .fuzzing import fuzzed

SERIAL = "6000c295766d777261707065722d7363"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    file = tmp_path / "base.vmdk"
    make_disk(file, 4096, serial=SERIAL)
    return file


def changed(disk: Path, old: bytes, new: bytes) -> None:
    content = disk.read_bytes()
    assert content.count(old) == 1
    disk.write_bytes(content.replace(old, new.ljust(len(old))))


def beside(disk: Path, *lines: str) -> Path:
    vmx = disk.with_suffix(".vmx")
    vmx.write_text("\n".join(['.encoding = "UTF-8"', 'scsi0:0.fileName = "base.vmdk"', *lines, ""]))
    return vmx


def test_a_disk_by_itself(disk: Path) -> None:
    image = base_image(disk)
    assert (image.disk, image.sectors, image.place, image.controller) == (disk, 4096, "scsi0:0", "lsilogic")
    assert (image.guest_os, image.hardware_version, image.efi) == ("otherlinux-64", 14, False)
    assert f"CID={image.content}".encode() in disk.read_bytes()


def test_an_ide_disk(disk: Path) -> None:
    changed(disk, b'"lsilogic"', b'"ide"')
    image = base_image(disk)
    assert (image.place, image.controller) == ("ide0:0", None)


def test_a_machine(disk: Path) -> None:
    lines = ('scsi0.virtualDev = "pvscsi"', 'guestOS = "debian11-64"', 'firmware = "efi"', 'virtualHW.version = "19"')
    image = base_image(beside(disk, *lines))
    assert (image.controller, image.guest_os, image.efi, image.hardware_version) == ("pvscsi", "debian11-64", True, 19)


def test_a_machine_with_another_controller(disk: Path) -> None:
    vmx = disk.with_suffix(".vmx")
    vmx.write_text('nvme0:0.fileName = "base.vmdk"\n')
    assert base_image(vmx).place == "nvme0:0"


def test_nothing_odd_is_taken(disk: Path) -> None:
    odd = ('guestOS = "x|22|0Ay"', 'scsi0.virtualDev = "serial0"', 'virtualHW.version = "9999"', 'firmware = "x"')
    image = base_image(beside(disk, *odd))
    assert (image.guest_os, image.controller, image.hardware_version, image.efi) == (
        "otherlinux-64", "lsilogic", 14, False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["/etc/passwd.vmdk", "../base.vmdk", "a/base.vmdk", r"C:\base.vmdk", r"..\base.vmdk"])
def test_a_disk_elsewhere(disk: Path, name: str) -> None:
    vmx = disk.with_suffix(".vmx")
    vmx.write_text(f'scsi0:0.fileName = "{name}"\n')
    with pytest.raises(JobError, match="has its disk elsewhere"):
        base_image(vmx)


def test_a_disk_that_is_a_link(disk: Path, tmp_path: Path) -> None:
    disk.rename(tmp_path / "other.vmdk")
    disk.symlink_to("other.vmdk")
    with pytest.raises(JobError, match="is a link"):
        base_image(beside(disk))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no .vmx file"),
        ("\0" * 300_000, "no .vmx file"),
        ('memsize = "64"\n', "no disk"),
        ('scsi0:0.fileName = "base.vmdk"\nencryption.keySafe = "x"\n', "encrypted"),
        ('scsi0:0.fileName = "none.vmdk"\n', "can't read the image .*none.vmdk"),
    ],
)
def test_machines_of_no_use(disk: Path, content: str, reason: str) -> None:
    vmx = disk.with_suffix(".vmx")
    vmx.write_text(content)
    with pytest.raises(JobError, match=reason):
        base_image(vmx)


def test_an_overlay_is_no_base(disk: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.vmdk"
    make_overlay(overlay, 4096, Parent(disk, "00000001"))
    with pytest.raises(JobError, match="it has a parent"):
        base_image(overlay)


def test_a_compressed_disk(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(8)
        file.write((3 | 1 << 16).to_bytes(4, "little"))
    with pytest.raises(JobError, match=r"compressed VMDK.*qemu-img convert"):
        base_image(disk)


def test_a_disk_in_another_format(tmp_path: Path) -> None:
    file = tmp_path / "base.vmdk"
    file.write_bytes(bytes(510) + b"\x55\xaa" + bytes(512))
    with pytest.raises(JobError, match="raw format, which VMware does not run"):
        base_image(file)


def test_a_disk_without_identity(disk: Path) -> None:
    content = disk.read_bytes()
    disk.write_bytes(content.replace(b"\nCID=", b"\nCXX="))
    with pytest.raises(JobError, match="without content identity"):
        base_image(disk)


@pytest.mark.parametrize("folder", ['a"b', "a\nb", "a\udcff"])
def test_a_folder_that_vmware_cant_be_told(disk: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    moved = disk.rename(tmp_path / folder / "base.vmdk")
    with pytest.raises(JobError, match="rename it"):
        base_image(moved)


def test_a_path_that_is_too_long(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        make_overlay(tmp_path / "overlay.vmdk", 4096, Parent(Path("/" + "x" * 11_000), "00000001"))


@fuzzed
@given(said=st.binary())
def test_whatever_a_machine_says(tmp_path_factory: pytest.TempPathFactory, said: bytes) -> None:
    vmx = tmp_path_factory.getbasetemp() / "odd.vmx"
    vmx.write_bytes(said)
    with pytest.raises(JobError):
        base_image(vmx)
