"""Output files that are uploaded while the job goes on; the test is the client."""

from pathlib import Path

import pytest

from vmwrapper.boinc.uploads import Uploads
from vmwrapper.errors import HostDiskFailed

from . import simulated_time


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "out_1").write_bytes(b"result")
    (tmp_path / "out").write_bytes(b"<soft_link>project/out_1</soft_link>")
    (tmp_path / "link").write_bytes(b"<soft_link>project/missing</soft_link>")
    return Uploads(tmp_path)


def test_the_client_is_asked_by_an_empty_file(uploads: Uploads, tmp_path: Path) -> None:
    assert not uploads.is_untold
    simulated_time.run(uploads.request("out"))
    assert (tmp_path / "boinc_ufr_out").read_bytes() == b""
    assert uploads.is_untold


def test_its_answer_is_a_file_too(uploads: Uploads, tmp_path: Path) -> None:
    assert uploads.status("out") is None
    for content, status in ((b"", None), (b"<status>-161</status>\n", -161), (b"\xff<status>x", None)):
        (tmp_path / "boinc_ufs_out").write_bytes(content)
        assert uploads.status("out") == status


def test_an_earlier_answer_is_none_to_a_new_request(uploads: Uploads, tmp_path: Path) -> None:
    (tmp_path / "boinc_ufs_out").write_bytes(b"<status>0</status>\n")
    simulated_time.run(uploads.request("out"))
    assert uploads.status("out") is None


@pytest.mark.parametrize("name", ["missing", "link", "project"])
def test_what_is_not_there_is_not_uploaded(uploads: Uploads, tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no file to upload"):
        simulated_time.run(uploads.request(name))
    assert not uploads.is_untold
    assert not list(tmp_path.glob("boinc_ufr_*"))


@pytest.mark.parametrize("name", ["", "project/out_1", "../out", "a\nb", "x" * 201, "a\0b", "a\\b"])
def test_what_the_client_could_not_find_is_refused(uploads: Uploads, name: str) -> None:
    with pytest.raises(ValueError, match="no output file"):
        simulated_time.run(uploads.request(name))
    with pytest.raises(ValueError, match="no output file"):
        uploads.status(name)


def test_what_cant_be_asked(uploads: Uploads, tmp_path: Path) -> None:
    (tmp_path / "boinc_ufs_out").mkdir()
    with pytest.raises(HostDiskFailed, match="can't ask"):
        simulated_time.run(uploads.request("out"))
    assert not uploads.is_untold


def test_what_an_earlier_episode_left_is_told(uploads: Uploads, tmp_path: Path) -> None:
    uploads.begin()
    assert not uploads.is_untold
    (tmp_path / "boinc_ufr_out").touch()
    uploads.begin()
    assert uploads.is_untold
