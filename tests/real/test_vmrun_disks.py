"""The disks that are made for VMware, as another program that knows its format sees them: QEMU's."""

import json
import subprocess
from pathlib import Path

import pytest

from vmwrapper.hypervisor.vmware.vmrun.disks import Parent, make_disk, make_overlay
from vmwrapper.hypervisor.vmware.vmrun.image import base_image
from vmwrapper.hypervisor.vmware.vmrun.settings import SCRATCH_UUID

pytestmark = pytest.mark.qemu

MIB = 1 << 20


def qemu(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=[3 * MIB, 70 * MIB + 512])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A base image with content at its beginning and its end."""
    raw, base = tmp_path / "raw", tmp_path / "base of all.vmdk"
    raw.write_bytes(b"\xeb\x3c" + bytes(508) + b"\x55\xaa" + b"some" * 1000)
    with raw.open("r+b") as file:
        file.seek(request.param - 3)
        file.write(b"end")
    words = ("-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicSparse,adapter_type=lsilogic")
    qemu("qemu-img", "convert", *words, raw, base)
    return base


def test_an_overlay_has_what_its_parent_has(base: Path, tmp_path: Path) -> None:
    before = base.read_bytes()
    image, overlay = base_image(base), tmp_path / "root.vmdk"
    make_overlay(overlay, image.sectors, Parent(image.disk, image.content))
    info = json.loads(qemu("qemu-img", "info", "--output=json", overlay))
    assert (info["format"], info["backing-filename"]) == ("vmdk", str(base))
    assert info["virtual-size"] == image.sectors * 512
    assert info["format-specific"]["data"]["parent-cid"] == int(image.content, 16)
    assert info["actual-size"] < MIB
    qemu("qemu-img", "check", overlay)
    qemu("qemu-img", "compare", "-s", overlay, base)
    assert "read 65536/65536" in qemu("qemu-io", "-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k", overlay)
    qemu("qemu-img", "check", overlay)
    assert base.read_bytes() == before


@pytest.mark.parametrize("size_mib", [1, 32, 33, 4096, 100 * 1024])
def test_a_disk_is_empty_and_takes_all(tmp_path: Path, size_mib: int) -> None:
    disk = tmp_path / "scratch.vmdk"
    make_disk(disk, size_mib * 2048, serial=SCRATCH_UUID)
    info = json.loads(qemu("qemu-img", "info", "--output=json", disk))
    assert (info["virtual-size"], "backing-filename" in info) == (size_mib * MIB, False)
    last = f"{size_mib * 1024 - 64}k"
    said = qemu("qemu-io", "-c", "read -P 0 0 64k", "-c", f"write -P 7 {last} 64k", "-c", f"read -P 7 {last} 64k", disk)
    assert said.count("65536/65536") == 3
    qemu("qemu-img", "check", disk)


def test_a_base_that_has_changed_is_another_one(base: Path) -> None:
    before = base_image(base).content
    qemu("qemu-io", "-c", "write -P 7 1M 64k", base)
    assert base_image(base).content != before
