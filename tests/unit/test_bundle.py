import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.errors import JobError
from vmwrapper.guest import bundle
from vmwrapper.guest.bundle import Contents, DiskFormat, extract, is_bundle, open_bundle, verify, write_bundle

from .fuzzing import fuzzed

KERNEL = b"\x7fELF" + bytes(range(256)) * 5
INITRAMFS = b"070701" * 100
DISK = b"QFI\xfb" * 128


def contents() -> Contents:
    return Contents(
        kernel=io.BytesIO(KERNEL),
        initramfs=io.BytesIO(INITRAMFS),
        command_line="console=ttyS0 quiet",
        built_from={"busybox-static": "1:1.35.0"},
        recipe="abc",
    )


def with_disk() -> Contents:
    return replace(contents(), disk=io.BytesIO(DISK), disk_format=DiskFormat.QCOW2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "guest.vmguest"
    write_bundle(path, with_disk())
    return path


def parts(path: Path) -> dict[str, bytes]:
    """The members of a sound bundle."""
    with tarfile.open(path) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}


def pack(path: Path, members: dict[str, bytes], *, kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            header.type = kind if name == "kernel" else tarfile.REGTYPE
            tar.addfile(header, io.BytesIO(data))


def rewrite_manifest(path: Path, change: Callable[[dict], None]) -> None:
    members = parts(path)
    manifest = json.loads(members["manifest.json"])
    change(manifest)
    pack(path, members | {"manifest.json": json.dumps(manifest).encode()})


def defect(path: Path) -> str:
    """What `open_bundle` says of a file, which must name it and be one sentence."""
    with pytest.raises(JobError) as raised:
        open_bundle(path)
    said = str(raised.value)
    assert str(path) in said
    assert "\n" not in said
    return said


def copied(path: Path, section: str) -> bytes:
    opened = open_bundle(path)
    copy = io.BytesIO()
    extract(opened, getattr(opened, section), copy)
    return copy.getvalue()


def test_what_was_written_is_read(path: Path) -> None:
    opened = open_bundle(path)
    assert opened.command_line == "console=ttyS0 quiet"
    assert opened.built_from == {"busybox-static": "1:1.35.0"}
    assert opened.recipe == "abc"
    assert opened.disk is not None
    assert opened.disk.format is DiskFormat.QCOW2
    assert [copied(path, name) for name in ("kernel", "initramfs", "disk")] == [KERNEL, INITRAMFS, DISK]


def test_the_disk_is_optional(tmp_path: Path) -> None:
    write_bundle(tmp_path / "x", contents())
    assert open_bundle(tmp_path / "x").disk is None


def test_the_file_is_a_tar_with_nothing_of_the_builder_in_it(path: Path) -> None:
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["manifest.json", "kernel", "initramfs", "disk"]
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    write_bundle(tmp_path / "once", replace(with_disk(), built_from={"a": "1", "b": "2"}))
    write_bundle(tmp_path / "again", replace(with_disk(), built_from={"b": "2", "a": "1"}))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "once").read_bytes()


def test_a_failed_write_leaves_the_old_bundle_and_nothing_else(path: Path) -> None:
    class Failing(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            if self.reads > 3:  # after it was measured
                raise OSError("no more")
            return super().read(size)

    before = path.read_bytes()
    with pytest.raises(OSError, match="no more"):
        write_bundle(path, replace(contents(), kernel=Failing(KERNEL)))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_part_too_large_for_the_format_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb+") as sparse:
        sparse.truncate(8 * 1024**3)
        with pytest.raises(JobError, match="the disk has 8589934592 bytes"):
            write_bundle(tmp_path / "x", replace(contents(), disk=sparse))
    assert not (tmp_path / "x").exists()


def test_a_bundle_is_known_by_its_content(path: Path, tmp_path: Path) -> None:
    renamed = path.rename(tmp_path / "guest.qcow2")
    assert is_bundle(renamed)
    for other in (b"", b"QFI\xfb" + bytes(1000), bytes(512)):
        (tmp_path / "other").write_bytes(other)
        assert not is_bundle(tmp_path / "other")


@pytest.mark.parametrize("section", ["kernel", "initramfs", "disk"])
def test_damaged_bytes_are_found(path: Path, section: str) -> None:
    verify(open_bundle(path))
    data = bytearray(path.read_bytes())
    data[getattr(open_bundle(path), section).offset + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(JobError, match="another SHA-256"):
        verify(open_bundle(path))


def test_a_bundle_cut_after_it_was_opened_is_found(path: Path) -> None:
    opened = open_bundle(path)
    os.truncate(path, opened.kernel.offset + 10)
    with pytest.raises(JobError, match="another SHA-256"):
        verify(opened)


def test_a_full_disk_is_not_the_bundles_fault(path: Path) -> None:
    opened = open_bundle(path)
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("wb", buffering=0) as full:
        extract(opened, opened.kernel, full)


def test_a_missing_file_and_what_is_no_file(tmp_path: Path) -> None:
    assert "No such file" in defect(tmp_path / "missing")
    assert "not a regular file" in defect(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in defect(tmp_path / "pipe")


def test_an_empty_file(path: Path) -> None:
    path.write_bytes(b"")
    assert "the file is empty" in defect(path)


@pytest.mark.parametrize("start", [b"QFI\xfb" + bytes(1000), b"\x7fELF" * 1000, bytes(2048)])
def test_another_kind_of_file(path: Path, start: bytes) -> None:
    path.write_bytes(start)
    assert "not a guest bundle" in defect(path)


def test_another_tar(path: Path) -> None:
    pack(path, {"etc/passwd": b"x"})
    assert "not a guest bundle: it begins with 'etc/passwd'" in defect(path)


def test_every_truncation_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(1, len(whole) - tarfile.BLOCKSIZE, 100):
        path.write_bytes(whole[:size])
        assert "truncated" in defect(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
def test_a_member_that_is_no_regular_file(path: Path, kind: bytes) -> None:
    pack(path, parts(path), kind=kind)
    assert "the member 'kernel' is no regular file" in defect(path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["manifest.json", "initramfs", "kernel", "disk"], "'initramfs' lies where kernel is expected"),
        (["manifest.json", "kernel", "disk"], "'disk' lies where initramfs is expected"),
        (["manifest.json", "kernel", "initramfs"], "no archive header"),
        (["manifest.json", "kernel", "initramfs", "disk", "more"], "something follows the disk"),
    ],
)
def test_members_that_are_missing_or_too_many(path: Path, names: list[str], said: str) -> None:
    members = parts(path)
    pack(path, {name: members.get(name, b"") for name in names})
    assert said in defect(path)


def test_a_size_behind_the_end(path: Path) -> None:
    header = tarfile.TarInfo("manifest.json")
    header.size = 8**11 - 1
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    assert "goes on behind the end of the file" in defect(path)


def test_a_negative_size(path: Path) -> None:
    header = tarfile.TarInfo("manifest.json")
    header.size = -512
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "goes on behind the end of the file" in defect(path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 60_000, b"1" * 60_000])
def test_a_manifest_that_is_not_json(path: Path, text: bytes) -> None:
    pack(path, parts(path) | {"manifest.json": text})
    assert "its manifest is not JSON" in defect(path)


def test_a_manifest_that_is_no_object(path: Path) -> None:
    pack(path, parts(path) | {"manifest.json": b"[1]"})
    assert "not a JSON object" in defect(path)


def test_a_manifest_that_is_too_long(path: Path) -> None:
    pack(path, parts(path) | {"manifest.json": b" " * 65_537})
    assert "at most 65536" in defect(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "vmwrapper guest 2"}, "the format 'vmwrapper guest 2'; this vmwrapper reads 'vmwrapper guest 1'"),
        ({"format": None}, "the format None"),
        ({"format": ["x" * 5000]}, "this vmwrapper reads"),
        ({"kernel": None}, "no 'kernel' of the right type"),
        ({"kernel": {"size": len(KERNEL)}}, "no SHA-256 of the kernel"),
        ({"kernel": {"size": len(KERNEL), "sha256": "A" * 64}}, "no SHA-256 of the kernel"),
        ({"kernel": {"size": 1, "sha256": "a" * 64}}, f"another size than the {len(KERNEL)} bytes"),
        ({"kernel": {"size": float(len(KERNEL)), "sha256": "a" * 64}}, "another size"),
        ({"disk": {"size": len(DISK), "sha256": "a" * 64, "format": "vmdk"}}, "'vmdk' instead of raw or qcow2"),
        ({"disk": {"size": len(DISK), "sha256": "a" * 64, "format": []}}, "[] instead of raw or qcow2"),
        ({"command_line": 1}, "no 'command_line' of the right type"),
        ({"command_line": "quiet\nrm"}, "printable ASCII"),
        ({"command_line": "\ud800"}, "printable ASCII"),
        ({"command_line": "hostname=café"}, "printable ASCII"),
        ({"command_line": "x" * 2048}, "printable ASCII"),
        ({"built_from": []}, "no 'built_from' of the right type"),
        ({"built_from": {"busybox": 1}}, "no 'busybox' of the right type"),
        ({"recipe": None}, "no 'recipe' of the right type"),
    ],
)
def test_a_manifest_with_a_wrong_entry(path: Path, change: dict, said: str) -> None:
    rewrite_manifest(path, lambda manifest: manifest.update(change))
    assert said in defect(path)
    assert len(defect(path)) < len(str(path)) + 200


def test_what_a_later_version_adds_to_the_manifest_is_ignored(path: Path) -> None:
    rewrite_manifest(path, lambda manifest: manifest.update(colour="blue"))
    assert open_bundle(path).recipe == "abc"


def opens_or_names_the_defect(path: Path) -> None:
    try:
        opened = open_bundle(path)
    except JobError as error:
        assert str(path) in str(error)  # noqa: PT017  (opening it is right, too)
        return
    size = path.stat().st_size
    for section in (opened.kernel, opened.initramfs, *filter(None, [opened.disk])):
        assert 0 <= section.offset <= section.offset + section.size <= size


@fuzzed
@given(st.binary(max_size=2000))
def test_random_bytes_open_or_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "random").write_bytes(data)
    opens_or_names_the_defect(tmp_path / "random")


@fuzzed
@given(st.data())
def test_mutated_bundles_open_or_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "mutated"
    write_bundle(path, with_disk())
    mutated = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(mutated) - 1))
        mutated[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=12))
    path.write_bytes(mutated)
    opens_or_names_the_defect(path)


@fuzzed
@given(field=st.integers(0, 499), written=st.binary(min_size=1, max_size=12), member=st.integers(0, 3))
def test_headers_with_a_right_checksum_open_or_are_refused(
    tmp_path: Path, field: int, written: bytes, member: int
) -> None:
    path = tmp_path / "forged"
    write_bundle(path, with_disk())
    opened = open_bundle(path)
    assert opened.disk is not None
    first_bytes = [512, opened.kernel.offset, opened.initramfs.offset, opened.disk.offset]
    mutated = bytearray(path.read_bytes())
    start = first_bytes[member] - tarfile.BLOCKSIZE
    header = mutated[start : start + tarfile.BLOCKSIZE]
    header[field : field + len(written)] = written
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    mutated[start : start + tarfile.BLOCKSIZE] = header
    path.write_bytes(mutated)
    opens_or_names_the_defect(path)


@fuzzed
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda of: st.lists(of) | st.dictionaries(st.text(), of),
    ),
    st.sampled_from(["format", "kernel", "disk", "command_line", "built_from", "recipe"]),
)
def test_any_value_in_the_manifest_opens_or_is_refused(tmp_path: Path, value: object, key: str) -> None:
    path = tmp_path / "forged"
    write_bundle(path, with_disk())
    rewrite_manifest(path, lambda manifest: manifest.update({key: value}))
    opens_or_names_the_defect(path)


def test_the_suffix_is_the_documented_one() -> None:
    assert bundle.SUFFIX == ".vmguest"
