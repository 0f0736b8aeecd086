"""What a logical name stands for, and what is left for the client to read."""

from pathlib import Path

import pytest

from vmwrapper.boinc.slot_files import resolve, write_finish, write_temporary_exit
from vmwrapper.errors import HostDiskFailed, MachineExited, NoUsableHypervisor, SlotBusy, TemporaryFailure


@pytest.mark.parametrize(
    ("content", "target"),
    [
        (b"<soft_link>../../projects/P/in_1</soft_link>\n", "../../projects/P/in_1"),
        (b"<soft_link> ../x </soft_link>", "../x"),
        (b"junk <soft_link>x</soft_link> junk", "x"),
        (b"<soft_link>R&amp;D &lt;1&gt; &quot;&apos;&#195;&#169;&amp;lt;</soft_link>", "R&D <1> \"'é&lt;"),
        (b"<soft_link>/absolute</soft_link>", "/absolute"),
        (b"data\n<soft_link>x</soft_link>", "name"),
        (b"<soft_link>x\n</soft_link>", "name"),
        (b"<soft_link>" + b"x" * 488 + b"</soft_link>", "x" * 488),
        (b"<soft_link>" + b"x" * 489 + b"</soft_link>", "name"),
        (b"<soft_link>a&#0;b</soft_link>", "name"),
        (b"<soft_link>a\0b</soft_link>", "name"),
        (b"", "name"),
    ],
)
def test_a_file_with_a_soft_link_stands_for_another(tmp_path: Path, content: bytes, target: str) -> None:
    (tmp_path / "name").write_bytes(content)
    assert resolve(tmp_path, "name") == tmp_path / target


def test_a_real_link_is_itself(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"<soft_link>x</soft_link>")
    (tmp_path / "name").symlink_to("other")
    assert resolve(tmp_path, "name") == tmp_path / "name"


@pytest.mark.parametrize("name", ["missing", "folder", "n" * 300])
def test_what_is_no_file_is_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    assert resolve(tmp_path, name) == tmp_path / name


def test_finish(tmp_path: Path) -> None:
    write_finish(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("boinc_finish_called", "0\n")]


@pytest.mark.parametrize(
    ("status", "notice", "content"),
    [
        (0, " ", "0\n"),
        (0, "All stars\nare found\n", "0\nAll stars\\nare found\nnotice\n"),
        (7, "é" * 1000, f"7\n{'é' * 127}\nnotice\n"),
    ],
)
def test_finish_with_a_notice(tmp_path: Path, status: int, notice: str, content: str) -> None:
    write_finish(tmp_path, status=status, notice=notice)
    assert (tmp_path / "boinc_finish_called").read_text() == content


@pytest.mark.parametrize(
    ("error", "content"),
    [
        (MachineExited("it was\nkilled"), "15\nit was\\nkilled\n"),
        (MachineExited(""), "15\nfor a reason that is not known\n"),
        (NoUsableHypervisor(" "), "3600\nfor a reason that is not known\nnotice\n"),
        (SlotBusy("busy"), "600\nbusy\n"),
        (NoUsableHypervisor("install QEMU"), "3600\ninstall QEMU\nnotice\n"),
        (MachineExited("x" * 1000), f"15\n{'x' * 254}\n"),
        (MachineExited("é" * 1000), f"15\n{'é' * 127}\n"),
    ],
)
def test_temporary_exit(tmp_path: Path, error: TemporaryFailure, content: str) -> None:
    write_temporary_exit(tmp_path, error)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("boinc_temporary_exit", content)]


def test_what_cant_be_written(tmp_path: Path) -> None:
    with pytest.raises(HostDiskFailed, match="boinc_finish_called"):
        write_finish(tmp_path / "none")


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "boinc_finish_called").mkdir()
    with pytest.raises(HostDiskFailed, match="boinc_finish_called"):
        write_finish(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["boinc_finish_called"]
