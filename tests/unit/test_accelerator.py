"""What a probe makes of QEMU's answers, and what it believes of its own cache."""

import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from vmwrapper import process
from vmwrapper.errors import ProcessFailed, TemporaryFailure
from vmwrapper.hypervisor.host import host_processor
from vmwrapper.hypervisor.qemu import firmware
from vmwrapper.hypervisor.qemu.accelerator import PROBE_LIMIT_S, Accelerator, Host, Verdict, best, probe

DONE = process.Completed(firmware.DONE_STATUS, b"", b"")
ABORTED = process.Completed(-6, b"", b"warning: a\nqemu: Assertion failed.\n")


class FakeQemu:
    """Answers in QEMU's place, and remembers what it was asked and which image it was given."""

    def __init__(self, answer: process.Completed | Exception = DONE) -> None:
        self.answer = answer
        self.commands: list[list[str]] = []
        self.images: list[bytes] = []

    async def __call__(
        self, argv: Sequence[str], *, limit_s: float, directory: Path | None = None
    ) -> process.Completed:
        assert limit_s <= PROBE_LIMIT_S
        self.commands.append(list(argv))
        self.images.append(Path(argv[argv.index("-bios") + 1]).read_bytes())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def failed_because_of(cause: Exception) -> ProcessFailed:
    error = ProcessFailed("the command")
    error.__cause__ = cause
    return error


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    file = tmp_path / "qemu"
    file.write_bytes(b"a program")
    return file


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "not" / "yet" / "there"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    file = tmp_path / "kvm"
    file.touch()
    return file


def a_host(qemu: FakeQemu, device: Path, *, boot_id: str = "boot 1", system: str = "Linux") -> Host:
    return Host(system=system, boot_id=boot_id, kvm_device=device, run=qemu)


def test_the_image_starts_at_the_reset_vector() -> None:
    image = firmware.image()
    assert len(image) == 0x10000
    assert image[0xFFF0:0xFFF5] == bytes.fromhex("ea 00 00 00 f0")


async def test_a_guest_that_got_through_is_a_working_accelerator(binary: Path, device: Path) -> None:
    qemu = FakeQemu(DONE)
    verdict = await probe(binary, Accelerator.KVM, cache=None, host=a_host(qemu, device))
    assert verdict.works
    assert qemu.images == [firmware.image()]
    assert qemu.commands[0][0] == str(binary)
    assert {"kvm", "host"} < set(qemu.commands[0])


@pytest.mark.parametrize("status", [0, 1, -6])
async def test_any_other_end_is_a_dead_accelerator(binary: Path, device: Path, status: int) -> None:
    qemu = FakeQemu(process.Completed(status, b"", ABORTED.stderr))
    verdict = await probe(binary, Accelerator.KVM, cache=None, host=a_host(qemu, device))
    assert not verdict.works
    assert verdict.reason.endswith(f"status {status}, qemu: Assertion failed.")


async def test_a_guest_without_progress_is_a_dead_accelerator(binary: Path, device: Path) -> None:
    qemu = FakeQemu(failed_because_of(TimeoutError()))
    verdict = await probe(binary, Accelerator.KVM, cache=None, host=a_host(qemu, device))
    assert verdict == Verdict(
        Accelerator.KVM, works=False, reason="/dev/kvm is there, but a guest made no progress within 2 s"
    )


async def test_a_qemu_that_cannot_start_says_nothing_about_the_accelerator(cache: Path, device: Path) -> None:
    qemu = FakeQemu(failed_because_of(FileNotFoundError()))
    with pytest.raises(ProcessFailed):
        await probe(Path("/nowhere/qemu"), Accelerator.KVM, cache=cache, host=a_host(qemu, device))
    assert not cache.exists()


async def test_a_missing_device_is_told_without_qemu_and_not_remembered(
    binary: Path, cache: Path, device: Path
) -> None:
    qemu = FakeQemu()
    absent = await probe(binary, Accelerator.KVM, cache=cache, host=a_host(qemu, device.parent / "absent"))
    assert not absent.works
    assert "is missing" in absent.reason
    assert not qemu.commands
    assert (await probe(binary, Accelerator.KVM, cache=cache, host=a_host(qemu, device))).works


async def test_a_forbidden_device_names_the_group(binary: Path, cache: Path) -> None:
    forbidden_to_root_too = Path("/sys/kernel/uevent_seqnum")
    qemu = FakeQemu()
    verdict = await probe(binary, Accelerator.KVM, cache=cache, host=a_host(qemu, forbidden_to_root_too))
    assert not verdict.works
    assert "group kvm" in verdict.reason
    assert not qemu.commands
    assert not cache.exists()


async def test_a_device_that_is_no_device_is_told_without_qemu(binary: Path, cache: Path, tmp_path: Path) -> None:
    qemu = FakeQemu()
    verdict = await probe(binary, Accelerator.KVM, cache=cache, host=a_host(qemu, tmp_path))
    assert not verdict.works
    assert not qemu.commands


@pytest.mark.parametrize("answer", [DONE, ABORTED])
async def test_a_verdict_is_remembered(binary: Path, cache: Path, device: Path, answer: process.Completed) -> None:
    qemu = FakeQemu(answer)
    first = await probe(binary, Accelerator.KVM, cache=cache, host=a_host(qemu, device))
    second = await probe(binary, Accelerator.KVM, cache=cache, host=a_host(qemu, device))
    assert second == first
    assert len(qemu.commands) == 1
    assert [file.name for file in cache.iterdir()] == ["accelerator-kvm.json"]


async def test_a_verdict_is_asked_again_after_the_host_booted(binary: Path, cache: Path, device: Path) -> None:
    await probe(binary, Accelerator.KVM, cache=cache, host=a_host(FakeQemu(ABORTED), device))
    assert (await probe(binary, Accelerator.KVM, cache=cache, host=a_host(FakeQemu(), device, boot_id="boot 2"))).works


async def test_nothing_is_remembered_where_the_boot_is_unknown(binary: Path, cache: Path, device: Path) -> None:
    host = replace(a_host(FakeQemu(), device), boot_id=None)
    assert (await probe(binary, Accelerator.KVM, cache=cache, host=host)).works
    assert not cache.exists()


@pytest.mark.parametrize("change", ["size", "time", "path"])
async def test_a_verdict_is_asked_again_for_another_binary(
    binary: Path, cache: Path, device: Path, change: str
) -> None:
    await probe(binary, Accelerator.KVM, cache=cache, host=a_host(FakeQemu(ABORTED), device))
    before = binary.stat()
    if change == "size":
        binary.write_bytes(b"another program")
        os.utime(binary, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "time":
        os.utime(binary, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        binary = Path(shutil.copy2(binary, binary.with_name("elsewhere")))
    assert (await probe(binary, Accelerator.KVM, cache=cache, host=a_host(FakeQemu(), device))).works


async def test_a_verdict_holds_for_one_accelerator(binary: Path, cache: Path, device: Path) -> None:
    await probe(binary, Accelerator.KVM, cache=cache, host=a_host(FakeQemu(ABORTED), device))
    file = cache / "accelerator-kvm.json"
    file.rename(cache / "accelerator-tcg.json")
    assert (await probe(binary, Accelerator.TCG, cache=cache, host=a_host(FakeQemu(), device))).works


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 20000,
        b"[" * 10000,
        b"9" * 10000,
        b"null",
        b"[]",
        b'{"question": null, "works": false, "reason": ""}',
    ],
    ids=lambda garbage: repr(garbage[:20]),
)
async def test_garbage_in_the_cache_is_replaced(binary: Path, cache: Path, device: Path, garbage: bytes) -> None:
    file = cache / "accelerator-kvm.json"
    cache.mkdir(parents=True)
    file.write_bytes(garbage)
    qemu = FakeQemu()
    assert (await probe(binary, Accelerator.KVM, cache=cache, host=a_host(qemu, device))).works
    assert (await probe(binary, Accelerator.KVM, cache=cache, host=a_host(qemu, device))).works
    assert len(qemu.commands) == 1


@pytest.mark.parametrize(("field", "value"), [("works", 0), ("works", "no"), ("reason", None), ("reason", ["dead"])])
async def test_a_remembered_verdict_of_wrong_types_is_asked_again(
    binary: Path, cache: Path, device: Path, field: str, value: object
) -> None:
    await probe(binary, Accelerator.KVM, cache=cache, host=a_host(FakeQemu(ABORTED), device))
    file = cache / "accelerator-kvm.json"
    kept = json.loads(file.read_text())
    kept["answer"][field] = value
    file.write_text(json.dumps(kept))
    assert (await probe(binary, Accelerator.KVM, cache=cache, host=a_host(FakeQemu(), device))).works


async def test_a_pipe_in_the_place_of_the_cache_file_does_not_block(binary: Path, cache: Path, device: Path) -> None:
    file = cache / "accelerator-kvm.json"
    cache.mkdir(parents=True)
    os.mkfifo(file)
    rescue = threading.Timer(1, lambda: os.close(os.open(file, os.O_RDWR)))  # ends a reader that blocks the event loop
    rescue.start()
    started = time.monotonic()
    try:
        assert (await probe(binary, Accelerator.KVM, cache=cache, host=a_host(FakeQemu(), device))).works
    finally:
        rescue.cancel()
        rescue.join()
    assert time.monotonic() - started < 1


async def test_a_cache_that_takes_nothing_is_no_error(binary: Path, device: Path) -> None:
    not_a_folder = binary
    assert (await probe(binary, Accelerator.KVM, cache=not_a_folder, host=a_host(FakeQemu(), device))).works


async def test_a_directory_in_the_place_of_the_cache_file_is_no_error(binary: Path, cache: Path, device: Path) -> None:
    (cache / "accelerator-kvm.json").mkdir(parents=True)
    assert (await probe(binary, Accelerator.KVM, cache=cache, host=a_host(FakeQemu(), device))).works
    assert [file.name for file in cache.iterdir()] == ["accelerator-kvm.json"]


async def test_no_file_is_left(binary: Path, device: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    host = replace(a_host(FakeQemu(ABORTED), device), scratch=scratch)
    await probe(binary, Accelerator.KVM, cache=None, host=host)
    assert not list(scratch.iterdir())


async def test_a_temporary_folder_that_takes_nothing_is_a_temporary_failure(binary: Path, device: Path) -> None:
    host = replace(a_host(FakeQemu(), device), scratch=binary)
    with pytest.raises(TemporaryFailure, match="temporary folder"):
        await probe(binary, Accelerator.KVM, cache=None, host=host)


@pytest.mark.parametrize(("system", "hardware"), [("Linux", "kvm"), ("Darwin", "hvf"), ("Windows", "whpx")])
async def test_the_best_accelerator_is_the_hosts_own(binary: Path, device: Path, system: str, hardware: str) -> None:
    accelerator, verdicts = await best(binary, cache=None, host=a_host(FakeQemu(), device, system=system))
    assert accelerator == hardware
    assert [verdict.accelerator for verdict in verdicts] == [hardware]


async def test_emulation_is_left_where_the_hardware_is_dead(binary: Path, device: Path) -> None:
    accelerator, verdicts = await best(binary, cache=None, host=a_host(FakeQemu(ABORTED), device))
    assert accelerator is Accelerator.TCG
    assert [verdict.works for verdict in verdicts] == [False]


async def test_emulation_is_left_on_an_unknown_system(binary: Path, device: Path) -> None:
    qemu = FakeQemu()
    assert await best(binary, cache=None, host=a_host(qemu, device, system="Plan9")) == (Accelerator.TCG, [])
    assert not qemu.commands


class TestHostProcessor:
    CPUINFO = """\
processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu vme sse2

processor\t: 1
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu vme sse2
"""

    def said(self, tmp_path: Path, cpuinfo: str) -> str:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        return host_processor(tmp_path / "cpuinfo")

    def test_it_is_named(self, tmp_path: Path) -> None:
        name = self.said(tmp_path, self.CPUINFO)
        assert re.fullmatch(r"Some CPU @ 2\.00GHz \([0-9a-f]{8}\)", name)
        assert self.said(tmp_path, self.CPUINFO.replace("processor\t: 1", "processor\t: 7")) == name

    @pytest.mark.parametrize(("old", "new"), [("Some", "Another"), ("sse2", "sse2 avx"), ("sse2", "")])
    def test_it_is_another_one_where_a_guest_would_notice(self, tmp_path: Path, old: str, new: str) -> None:
        assert self.said(tmp_path, self.CPUINFO.replace(old, new)) != self.said(tmp_path, self.CPUINFO)

    @pytest.mark.parametrize("cpuinfo", ["", "\n", "nothing of the kind", ": \n", "model name\t: \x00\n"])
    def test_whatever_there_is_makes_a_line(self, tmp_path: Path, cpuinfo: str) -> None:
        assert "\n" not in self.said(tmp_path, cpuinfo)

    def test_another_system_says_it_otherwise(self, tmp_path: Path) -> None:
        assert host_processor(tmp_path / "none") == platform.processor()
