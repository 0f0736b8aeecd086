"""What interface.py promises of a guest: commands and files. The tests share a machine, and leave it good."""

import asyncio
import random
import secrets
import time
from pathlib import Path

import pytest
import pytest_asyncio

from vmwrapper.errors import GuestError, GuestSilent, HostDiskFailed, JobError, OutputTooLarge
from vmwrapper.hypervisor.interface import MIB, FileKind, Guest

from .subjects import Subject, host_files

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.guest_commands]

LARGE = 8 * MIB
"""From here on a backend may take another road."""
NAMES = [
    "plain",
    "with spaces ",
    'it\'s "quoted" \\ $HOME `x` *?[a]',
    "-rf",
    "--help",
    "ünïcödé ☃",
    "two\nlines\n",
    "\ttab and \x1b[31mred",
    "in/a/folder",
    "n" * 99,
    "n" * 100,
    "n" * 101,
    "n" * 255,
    f"{'d' * 200}/{'f' * 200}",
]
SIZES = [0, 1, 511, 512, 513, 64 * 1024, MIB + 1, LARGE - 1, LARGE, LARGE + 1]


@pytest_asyncio.fixture(loop_scope="module")
async def folder(subject: Subject, guest: Guest) -> str:
    """An empty folder of the guest."""
    path = f"/tmp/{secrets.token_hex(8)}"
    await subject.make_folder(guest, path)
    return path


async def get(guest: Guest, folder: str, names: list[str], into: Path, *, limit_bytes: int = MIB) -> dict[str, bytes]:
    """The contents of those files that are there."""
    places = {name: into / f"output {secrets.token_hex(4)}" for name in names}
    kinds = await guest.get(folder, places, limit_bytes=limit_bytes)
    assert list(kinds) == names
    arrived = [name for name, kind in kinds.items() if kind is FileKind.REGULAR]
    assert arrived == [name for name, place in places.items() if place.exists()]
    return {name: places[name].read_bytes() for name in arrived}


@pytest.fixture
def limit_s(subject: Subject) -> float:
    return subject.answers_within_s


class TestCommands:
    @pytest.mark.parametrize(("command", "status"), [("true", 0), ("false", 1)])
    async def test_status(self, guest: Guest, command: str, status: int, limit_s: float) -> None:
        result = await guest.run([command], limit_s=limit_s)
        assert (result.status, result.stdout, result.stderr) == (status, b"", b"")

    async def test_input_and_output_are_bytes(self, guest: Guest, limit_s: float) -> None:
        said = bytes(range(256))
        result = await guest.run(["cat"], stdin=said, limit_s=limit_s)
        assert (result.status, result.stdout, result.stderr) == (0, said, b"")

    async def test_64_kib_of_input(self, guest: Guest, limit_s: float) -> None:
        said = random.Random(1).randbytes(64 * 1024)
        assert (await guest.run(["cat"], stdin=said, limit_s=limit_s)).stdout == said

    async def test_512_kib_of_output(self, guest: Guest, folder: str, tmp_path: Path, limit_s: float) -> None:
        said = random.Random(1).randbytes(MIB // 2)
        await guest.put(host_files(tmp_path, {"file": said}), folder)
        assert (await guest.run(["cat", f"{folder}/file"], limit_s=limit_s)).stdout == said

    async def test_errors_go_to_stderr(self, guest: Guest, limit_s: float) -> None:
        result = await guest.run(["cat", "/nowhere"], limit_s=limit_s)
        assert result.status != 0
        assert result.stdout == b""
        assert b"/nowhere" in result.stderr

    async def test_an_argument_is_one_argument(self, guest: Guest, limit_s: float) -> None:
        result = await guest.run(["cat", '/a b; "c" $HOME'], limit_s=limit_s)
        assert b'/a b; "c" $HOME' in result.stderr

    async def test_an_unknown_command(self, guest: Guest, limit_s: float) -> None:
        with pytest.raises(GuestError, match="no-such-command"):
            await guest.run(["no-such-command"], limit_s=limit_s)

    async def test_one_that_takes_too_long_and_the_next_one(
        self, subject: Subject, guest: Guest, limit_s: float
    ) -> None:
        started = time.monotonic()
        with pytest.raises(GuestSilent, match=r"0\.3 s"):
            await guest.run(["sleep", "3"], limit_s=0.3)
        assert time.monotonic() - started < subject.ends_within_s
        assert (await guest.run(["true"], limit_s=limit_s)).status == 0

    async def test_several_at_once(self, guest: Guest, limit_s: float) -> None:
        said = [bytes([number]) * 1000 for number in range(4)]
        results = await asyncio.gather(*(guest.run(["cat"], stdin=words, limit_s=limit_s) for words in said))
        assert [result.stdout for result in results] == said


class TestReading:
    async def test_what_is_not_there(self, guest: Guest, folder: str) -> None:
        assert await guest.read(f"{folder}/file", limit_bytes=10) is None
        assert await guest.read(f"{folder}/no/file", limit_bytes=10) is None

    @pytest.mark.parametrize("size", [0, 9, 10, 11, 5000])
    async def test_the_first_bytes(self, guest: Guest, folder: str, tmp_path: Path, size: int) -> None:
        content = random.Random(size).randbytes(size)
        await guest.put(host_files(tmp_path, {"file": content}), folder)
        assert await guest.read(f"{folder}/file", limit_bytes=10) == content[:10]


class TestFiles:
    async def test_names_arrive_as_they_are(self, guest: Guest, folder: str, tmp_path: Path) -> None:
        contents = {name: name.encode() for name in NAMES}
        await guest.put(host_files(tmp_path, contents), folder)
        assert await get(guest, folder, NAMES, tmp_path) == contents

    async def test_contents_arrive_as_they_are(self, guest: Guest, folder: str, tmp_path: Path) -> None:
        contents = {f"file {size}": random.Random(size).randbytes(size) for size in SIZES}
        await guest.put(host_files(tmp_path, contents), folder)
        assert await get(guest, folder, list(contents), tmp_path, limit_bytes=sum(SIZES)) == contents

    async def test_no_files_at_all(self, guest: Guest, folder: str) -> None:
        await guest.put({}, folder)
        assert await guest.get(folder, {}, limit_bytes=0) == {}

    async def test_the_next_one_after_one_that_failed(self, guest: Guest, folder: str, tmp_path: Path) -> None:
        contents = {"small": b"x", "large": random.Random(1).randbytes(LARGE + 1000)}
        files = host_files(tmp_path, contents)
        with pytest.raises(GuestError):
            await guest.put(files, "/no/such/directory")
        await guest.put(files, folder)
        with pytest.raises(OutputTooLarge):
            await get(guest, folder, list(contents), tmp_path, limit_bytes=LARGE)
        with pytest.raises(HostDiskFailed):
            await guest.get(folder, files, limit_bytes=2 * LARGE)
        assert await get(guest, folder, list(contents), tmp_path, limit_bytes=2 * LARGE) == contents

    async def test_putting_again_replaces(self, guest: Guest, folder: str, tmp_path: Path) -> None:
        for content in (b"a longer one", b"new"):
            await guest.put(host_files(tmp_path, {"file": content}), folder)
        assert await guest.read(f"{folder}/file", limit_bytes=100) == b"new"

    @pytest.mark.parametrize("mode", [0o750, 0o640])
    async def test_the_executable_bit_is_kept(
        self, subject: Subject, guest: Guest, folder: str, tmp_path: Path, mode: int
    ) -> None:
        files = host_files(tmp_path, {"file": b"x"})
        files["file"].chmod(mode)
        await guest.put(files, folder)
        assert await subject.is_executable(guest, f"{folder}/file") is (mode == 0o750)

    async def test_what_the_host_does_not_have(self, guest: Guest, folder: str, tmp_path: Path) -> None:
        for path in (tmp_path / "nothing", tmp_path):
            with pytest.raises(JobError, match=str(path)):
                await guest.put({"file": path}, folder)
        await guest.put(host_files(tmp_path, {"file": b"x"}), folder)

    async def test_a_directory_that_the_guest_does_not_have(self, guest: Guest, tmp_path: Path) -> None:
        with pytest.raises(GuestError):
            await guest.put(host_files(tmp_path, {"file": b"x"}), "/no/such/directory")

    async def test_only_regular_files_are_there(
        self, subject: Subject, guest: Guest, folder: str, tmp_path: Path
    ) -> None:
        await guest.put(host_files(tmp_path, {"file": b"x"}), folder)
        await subject.make_folder(guest, f"{folder}/folder")
        await subject.make_link(guest, f"{folder}/link", "file")
        await subject.make_link(guest, f"{folder}/dangling", "nothing")
        kinds = {
            "missing": FileKind.MISSING,
            "file": FileKind.REGULAR,
            "folder": FileKind.DIRECTORY,
            "link": FileKind.LINK,
            "dangling": FileKind.LINK,
            "no/file": FileKind.MISSING,
        }
        assert await guest.get(folder, {name: tmp_path / f"to {name}" for name in kinds}, limit_bytes=1) == kinds
        assert [path.name for path in tmp_path.glob("to *")] == ["to file"]

    async def test_more_than_the_limit_is_refused(self, guest: Guest, folder: str, tmp_path: Path) -> None:
        contents = {"one": bytes(600), "two": bytes(600)}
        await guest.put(host_files(tmp_path, contents), folder)
        with pytest.raises(OutputTooLarge):
            await get(guest, folder, list(contents), tmp_path, limit_bytes=1199)
        assert await get(guest, folder, list(contents), tmp_path, limit_bytes=1200) == contents

    async def test_a_file_of_the_host_is_never_replaced(self, guest: Guest, folder: str, tmp_path: Path) -> None:
        await guest.put(host_files(tmp_path, {"file": b"from the guest"}), folder)
        there = tmp_path / "there"
        there.write_bytes(b"the host's")
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "not there")
        for place in (there, link):
            with pytest.raises(HostDiskFailed):
                await guest.get(folder, {"file": place}, limit_bytes=MIB)
        assert there.read_bytes() == b"the host's"
        assert not (tmp_path / "not there").exists()
        assert await get(guest, folder, ["file"], tmp_path) == {"file": b"from the guest"}

    async def test_the_base_image_stays_as_it_is(
        self, subject: Subject, guest: Guest, folder: str, tmp_path: Path
    ) -> None:
        before = subject.image.read_bytes()
        await guest.put(host_files(tmp_path, {"file": random.Random(1).randbytes(MIB // 2)}), folder)
        assert subject.image.read_bytes() == before
