"""Inputs and outputs of every kind, in and out of real guests."""

import os
import random
import re
import stat
import subprocess
import tarfile
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from .test_job import job, read_until, start, task, vmwrapper, write_job
from .test_mishaps import ends_with

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("default_image")]

AWKWARD_NAMES = [
    "with spaces  in it",
    'it\'s "quoted" \\ $HOME `x` *?[a] <&>',
    "-rf",
    "--help",
    "two\nlines",
    "a\ttab",
    "ünïcödé ☃ \N{ZERO WIDTH SPACE}",
    "n" * 255,
]


def tags(tag: str, names: list[str]) -> str:
    return "".join(f"<{tag}>{escape(name)}</{tag}>" for name in names)


def test_names_of_every_kind(tmp_path: Path) -> None:
    names = [*AWKWARD_NAMES, "folder/file"]
    (tmp_path / "folder").mkdir()
    for number, name in enumerate(names):
        (tmp_path / name).write_text(f"content {number}")
    copies = [f"folder/{number}" for number in range(len(names))]
    # The names come by the environment, where they need no quotes.
    script = """\
IFS=: number=0
for name in $NAMES; do
    mv -- "$name" folder/$number && echo back >"./$name"
    number=$((number + 1))
done"""
    files = tags("data", names) + tags("output", names) + tags("output", copies)
    settings = f"<setenv>{escape('NAMES=' + ':'.join(names))}</setenv>"
    done = vmwrapper("run", write_job(tmp_path, job(task("move.sh", files, settings)), move=script))
    ends_with(done, 0, r"Copying in input two\nlines")
    assert [(tmp_path / copy).read_text() for copy in copies] == [f"content {n}" for n in range(len(names))]
    assert {(tmp_path / name).read_text() for name in names} == {"back\n"}


def test_ten_thousand_files(tmp_path: Path) -> None:
    names = [f"file {number}" for number in range(10_000)]
    for number, name in enumerate(names):
        (tmp_path / name).write_text(f"content {number}")
    done = vmwrapper(
        "run",
        write_job(
            tmp_path,
            job(task("change.sh", tags("data", names), tags("output", names))),
            change='for f in file*; do echo " changed" >>"$f"; done; rm "file 7"',
        ),
    )
    ends_with(done, 195, "left no file file 7 in /tmp")
    assert len(done.stderr.splitlines()) < 100
    for number, name in enumerate(names):
        assert (tmp_path / name).read_text() == f"content {number}" + (" changed\n" if number != 7 else "")


def test_large_and_sparse_files_in_constant_memory(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(random.randbytes(128 << 20))
    os.truncate(tmp_path / "large", 300 << 20)
    (tmp_path / "empty").touch()
    files = tags("data", ["large", "empty"]) + tags("output", ["back", "sparse", "empty-too"])
    script = "mv large back; truncate -s 200M sparse; cp empty empty-too; chmod 750 sparse"
    process = start("run", write_job(tmp_path, job(task("move.sh", files)), move=script))
    read_until(process, "Sanitizing")
    status = Path(f"/proc/{process.pid}/status").read_text()
    process.communicate()
    assert process.returncode == 0
    subprocess.run(["cmp", tmp_path / "large", tmp_path / "back"], check=True)
    assert (tmp_path / "sparse").stat().st_size == 200 << 20
    assert (tmp_path / "sparse").stat().st_mode & stat.S_IXUSR
    assert not (tmp_path / "back").stat().st_mode & stat.S_IXUSR
    assert (tmp_path / "back").stat().st_uid == os.geteuid()
    assert (tmp_path / "empty-too").read_bytes() == b""
    [peak_kib] = re.findall(r"VmHWM:\s+(\d+) kB", status)
    assert int(peak_kib) < 60 * 1024


def test_outputs_that_are_no_regular_files(tmp_path: Path) -> None:
    script = """\
mkdir folder; ln -s plain inside; ln -s /etc/passwd outside; mkfifo pipe; mknod device c 1 3
syslogd; while [ ! -S /dev/log ]; do sleep 0.1; done; touch socket; mount -o bind /dev/log socket
echo yes >plain"""
    names = ["missing", "folder", "inside", "outside", "pipe", "device", "plain", "socket"]
    done = vmwrapper("run", write_job(tmp_path, job(task("make.sh", tags("output", names))), make=script))
    sentence = (
        "make.sh left no file missing, folder (it is a directory), inside (it is a symbolic link), "
        "outside (it is a symbolic link), pipe (it is a device, pipe or socket), "
        "device (it is a device, pipe or socket), socket (it is a device, pipe or socket) in /tmp"
    )
    ends_with(done, 195, sentence)
    assert {path.name for path in tmp_path.iterdir()} == {"job.xml", "make.sh", "plain"}


def test_a_thousand_hard_links(tmp_path: Path) -> None:
    names = [f"link {number}" for number in range(1000)]
    script = 'echo right >original; for n in $(seq 0 999); do ln original "link $n"; done'
    done = vmwrapper("run", write_job(tmp_path, job(task("link.sh", tags("output", names))), link=script))
    ends_with(done, 0)
    assert {(tmp_path / name).read_text() for name in names} == {"right\n"}
    assert {(tmp_path / name).stat().st_nlink for name in names} == {1}


DAEMON = (
    "(setsid sh -c '%s while :; do echo more >>grows; done' <&- >&- 2>&- &); while [ ! -s grows ]; do sleep 0.1; done"
)


def test_a_file_that_a_daemon_writes_to(tmp_path: Path) -> None:
    text = job(task("daemon.sh", tags("output", ["grows"])))
    done = vmwrapper("run", write_job(tmp_path, text, daemon=DAEMON % ""))
    ends_with(done, 0)
    assert set((tmp_path / "grows").read_text().split("\n")) == {"more", ""}


@pytest.mark.parametrize("before", ["", "truncate -s 20M grows;"])
def test_a_file_that_grows_while_it_is_copied(tmp_path: Path, before: str) -> None:
    escaping = f"echo $$ >/sys/fs/cgroup/cgroup.procs; {before}"
    text = job(task("daemon.sh", tags("output", ["grows"])))
    done = vmwrapper("run", write_job(tmp_path, text, daemon=DAEMON % escaping))
    ends_with(done, 195, "an output changed while it was copied")
    assert not (tmp_path / "grows").exists()


def test_what_looks_like_a_soft_link_is_data(tmp_path: Path) -> None:
    link = "<soft_link>/etc/passwd</soft_link>"
    tasks = task("first.sh", tags("output", ["a"])), task("second.sh", tags("data", ["a"]), tags("output", ["b"]))
    job_file = write_job(tmp_path, job(*tasks), first=f"echo '{link}' >a", second="cp a b")
    ends_with(vmwrapper("run", job_file), 0)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == f"{link}\n"


def test_tar_packages_are_installed_and_removed(tmp_path: Path) -> None:
    suffixes = {".tar": "", ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tar.xz": "xz"}
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho hello from ${0##*/}\n")
    tool.chmod(0o755)
    for suffix, compression in suffixes.items():
        with tarfile.open(tmp_path / f"tool{suffix}", f"w:{compression}") as package:
            package.add(tool, f"opt/tool/bin/greet{suffix}")
    text = job(task("use.sh", tags("package", [f"tool{suffix}" for suffix in suffixes]), "<output>result</output>"))
    script = "for tool in /opt/tool/bin/*; do $tool; done >result; ls >>result"
    done = vmwrapper("run", write_job(tmp_path, text, use=script))
    ends_with(done, 0, "Installing package tool.tar.gz", "removing tool.tar.gz")
    said = [f"hello from greet{suffix}" for suffix in sorted(suffixes)]
    assert (tmp_path / "result").read_text().splitlines() == [*said, "result", "use.sh"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("x.deb", "the guest can't install x.deb: dpkg: "),
        ("x.rpm", "the guest can't install x.rpm: "),
        ("x.apk", "the guest can't install x.apk: it has no apk"),
        ("x.tar", "the guest can't install x.tar: "),
    ],
)
def test_package_that_the_guest_cannot_install(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / name).write_text("no package")
    text = job(task("true.sh", f"<package>{name}</package>"))
    ends_with(vmwrapper("run", write_job(tmp_path, text, true="true")), 206, sentence)
