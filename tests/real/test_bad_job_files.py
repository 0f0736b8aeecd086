"""Every bad job file ends before anything starts, with its sentence, by the program `vmwrapper`."""

from pathlib import Path

import pytest

from .test_job import vmwrapper
from .test_mishaps import ends_with

TASK = "<vm>default</vm><innerjob>x.sh</innerjob>"
LAUGHS = "".join(f'<!ENTITY l{n} "{10 * f"&l{n - 1};"}">' for n in range(1, 10))
CASES = {
    "empty": (b"", "it is empty, where <job_desc> should be"),
    "binary": (bytes(range(256)), "not XML: a job file begins with <job_desc>"),
    "not XML": (b"vm = default", "not XML: a job file begins with <job_desc>"),
    "cut short": (b"<job_desc><task>", "line 1: not well-formed XML"),
    "wrong root": (b"<job/>", "line 1: the root element is <job>, where <job_desc> should be"),
    "no task": (b"<job_desc/>", "<job_desc> has no <task>, and needs at least one"),
    "nothing to run": (b"<job_desc><task/></job_desc>", "<task> has no <innerjob>, which names the program"),
    "misspelt tag": (b"<job_desc>\n<task><memory_mib/></task></job_desc>", "line 2: unknown tag <memory_mib>: did you"),
    "unknown tag": (b"<job_desc><task><qqqqqq/></task></job_desc>", "unknown tag <qqqqqq>"),
    "two dialects": (
        f"<job_desc><task>{TASK}<application>y</application></task></job_desc>".encode(),
        "<application> is for BOINC's wrapper, but <vm> on line 1 is for vmwrapper: a file can't mix the two",
    ),
    "vboxwrapper's": (b"<vbox_job/>", "this is a job file of BOINC's vboxwrapper (<vbox_job>)"),
    "DTD": (b"<!DOCTYPE job_desc><job_desc/>", "a job file has no <!DOCTYPE> and no entities"),
    "entity": (
        b'<!DOCTYPE job_desc [<!ENTITY vm "default">]><job_desc><task><vm>&vm;</vm></task></job_desc>',
        "a job file has no <!DOCTYPE> and no entities",
    ),
    "external reference": (
        b'<!DOCTYPE job_desc [<!ENTITY x SYSTEM "file:///etc/passwd">]><job_desc>&x;</job_desc>',
        "a job file has no <!DOCTYPE> and no entities",
    ),
    "billion laughs": (
        f'<!DOCTYPE job_desc [<!ENTITY l0 "lol">{LAUGHS}]><job_desc>&l9;</job_desc>'.encode(),
        "a job file has no <!DOCTYPE> and no entities",
    ),
    "negative number": (f"<job_desc><task>{TASK}<cpus>-1</cpus></task></job_desc>".encode(), "<cpus> must be a whole"),
    "huge number": (
        f"<job_desc><task>{TASK}<memory_mb>{'9' * 400}</memory_mb></task></job_desc>".encode(),
        "<memory_mb> must be a whole number from 64 to 1048576; it is '99999",
    ),
    "no number": (f"<job_desc><task>{TASK}<weight>nan</weight></task></job_desc>".encode(), "must be a number above 0"),
    "network": (
        f"<job_desc><task>{TASK}<network>1</network></task></job_desc>".encode(),
        "<network>1</network> is refused: no network that QEMU can give keeps a guest from this computer's own servers",
    ),
    "unknown backend": (
        f"<job_desc><task>{TASK}<backend>xen</backend></task></job_desc>".encode(),
        "<backend> must be one of qemu, virtualbox, vmware; it is 'xen'",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["check", "run"])
def test_bad_job_file(tmp_path: Path, command: str, case: str) -> None:
    content, sentence = CASES[case]
    (tmp_path / "job.xml").write_bytes(content)
    (tmp_path / "x.sh").touch()
    ends_with(vmwrapper(command, tmp_path / "job.xml"), 206, sentence, unsaid=["Machine", "root:"])
    assert {path.name for path in tmp_path.iterdir()} == {"job.xml", "x.sh"}


@pytest.mark.parametrize("command", ["check", "run"])
def test_job_file_of_100_mb_is_not_read(tmp_path: Path, command: str) -> None:
    with (tmp_path / "job.xml").open("wb") as file:
        file.write(b"<job_desc>")
        file.truncate(100_000_000)
    ends_with(vmwrapper(command, tmp_path / "job.xml"), 206, "larger than 1048576 bytes, the most that is read")
