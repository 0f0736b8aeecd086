"""Jobs in a guest that boots by itself from a disk image of any format."""

import hashlib
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .debian_disk import USER
from .test_job import EXAMPLES, LIMIT_S, job, machine_of, read_until, start, task, vmwrapper, write_job

pytestmark = pytest.mark.qemu


@pytest.fixture
def converted(debian_disk: Path, tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "own.vmdk"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "vmdk", debian_disk, image], check=True)
    yield image
    image.unlink()  # pytest keeps folders for long


def state(file: Path) -> tuple[str, int]:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest(), file.stat().st_mtime_ns


def test_image_of_another_format(converted: Path, tmp_path: Path) -> None:
    before = state(converted)
    text = job(task("say.sh", "<output>result</output>")).replace("default", converted.stem)
    script = "grep -o bookworm /etc/os-release > result; touch /mark; sync"
    done = vmwrapper("run", write_job(tmp_path, text, say=script))
    assert done.returncode == 0, done.stderr
    assert "bookworm" in (tmp_path / "result").read_text()
    assert state(converted) == before


def test_deb_package_is_installed_and_removed(debian_disk: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    control = "Package: vmwrapper-greet\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: greets\n"
    (root / "DEBIAN/control").write_text(control)
    (root / "usr/bin/greet").write_text("#!/bin/sh\necho hello from the package\n")
    (root / "usr/bin/greet").chmod(0o755)
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", root, tmp_path / "greet.deb"], check=True)
    (tmp_path / "own.qcow2").symlink_to(debian_disk)
    tags = f"<user>{USER}</user><package>greet.deb</package><output>result</output>"
    script = "{ greet; id -un; dpkg-query -W vmwrapper-greet; } >result"
    done = vmwrapper("run", write_job(tmp_path, job(task("use.sh", tags)).replace("default", "own"), use=script))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result").read_text().split("\n")[:2] == ["hello from the package", USER]
    assert "removing greet.deb" in done.stderr


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ("<user>nobody-knows-me</user>", "the guest has no user 'nobody-knows-me': name one that its image has"),
        ("<package>x.deb</package>", "the guest can't install x.deb: "),
    ],
)
def test_what_the_guest_does_not_have(debian_disk: Path, tmp_path: Path, tags: str, sentence: str) -> None:
    (tmp_path / "own.qcow2").symlink_to(debian_disk)
    (tmp_path / "x.deb").write_text("no package")
    done = vmwrapper("run", write_job(tmp_path, job(task("x.sh", tags)).replace("default", "own"), x="exit 0"))
    assert done.returncode == 206, done.stderr
    assert sentence in done.stderr


def test_jobs_share_a_base_that_stays_as_it_was(debian_disk: Path, tmp_path: Path) -> None:
    """The example runs, beside a job that writes all over its disk and whose wrapper is killed."""
    before = state(debian_disk)
    example, spoiler = tmp_path / "example", tmp_path / "spoiler"
    shutil.copytree(EXAMPLES, example, ignore=shutil.ignore_patterns("*.out"))
    spoiler.mkdir()
    for folder in (example, spoiler):
        (folder / "own.qcow2").symlink_to(debian_disk)
    text = (example / "job.xml").read_text()
    (example / "job.xml").write_text(text.replace("<vm>default</vm>", "<vm>own</vm>"))
    runs = start("run", example / "job.xml")
    spoil(spoiler)
    _, said = runs.communicate(timeout=LIMIT_S)
    assert runs.returncode == 0, said
    assert "H0 = 423.9 +-" in (example / "hubble.out").read_text()
    assert state(debian_disk) == before


def spoil(folder: Path) -> None:
    text = job(task("spoil.sh")).replace("default", "own")
    script = "dd if=/dev/urandom of=/dev/vda bs=64k count=200 conv=fsync; sleep 100"
    spoils = start("run", write_job(folder, text, spoil=script))
    read_until(spoils, "Running the program")
    machine = machine_of(spoils)
    while (folder / ".vmwrapper/root-1.qcow2").stat().st_size < 12 << 20:
        assert spoils.poll() is None
        time.sleep(0.05)
    spoils.kill()
    spoils.communicate()
    machine.wait(timeout=5)
    shutil.rmtree(folder)


def test_large_files_cross_through_the_window(debian_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "own.qcow2").symlink_to(debian_disk)
    (tmp_path / "large").write_bytes(random.randbytes(20_000_001))
    tags = "<data>large</data><output>back</output><output>stat</output>"
    script = "mv large back; cat /sys/block/vd?/stat >stat"
    done = vmwrapper("run", write_job(tmp_path, job(task("move.sh", tags)).replace("default", "own"), move=script))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()
    sectors_read = int((tmp_path / "stat").read_text().splitlines()[-1].split()[2])
    assert sectors_read * 512 >= 20_000_001
