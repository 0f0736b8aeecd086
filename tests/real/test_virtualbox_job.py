"""A whole job, run by the program `vmwrapper` in a real guest of VirtualBox's."""

import hashlib
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import psutil
import pytest

from tests.peers import virtualbox_linux
from tests.peers.virtualbox import Profile, clean_profile

from .test_job import VMWRAPPER

pytestmark = pytest.mark.virtualbox_linux

LIMIT_S = 400
COUNTS = 25
PROGRAM = f"""\
#!/bin/sh
id -un >who
n=0
while [ $n -lt {COUNTS} ]; do
    n=$((n + 1))
    echo "$n" >>counted
    sleep 1
done
cat input counted >output
"""
JOB = """\
<job_desc>
   <task>
      <backend>virtualbox</backend> <vm>{image}</vm> <memory_mb>160</memory_mb> <disk_mb>32</disk_mb>
      {login}
      <innerjob>program.sh</innerjob> <data>input</data> <output>output</output> <output>who</output>
      <checkpoint_interval>5</checkpoint_interval>
   </task>
</job_desc>
"""


@pytest.fixture
def virtualbox(tmp_path: Path) -> Iterator[Profile]:
    if reason := virtualbox_linux.missing():
        pytest.skip(reason)
    with clean_profile(tmp_path / "virtualbox") as profile:
        yield profile


def start(profile: Profile, job: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stderr:
        argv = [VMWRAPPER, "run", "--debug", job]
        return subprocess.Popen(argv, env=profile.environment, stderr=stderr, cwd=job.parent)


def until_said(process: subprocess.Popen[bytes], log: Path, words: str) -> None:
    ends_at_s = time.monotonic() + LIMIT_S
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < ends_at_s, log.read_text()
        time.sleep(0.1)


def test_goes_on_after_its_wrapper_was_killed(virtualbox: Profile, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(100_000)
    (tmp_path / "input").write_bytes(content)
    (tmp_path / "program.sh").write_text(PROGRAM)
    job = tmp_path / "job.xml"
    login = f"<user>root</user> <password>{escape(virtualbox_linux.PASSWORD)}</password>"
    job.write_text(JOB.format(image=virtualbox_linux.cd(), login=login))
    first, second = tmp_path / "first.log", tmp_path / "second.log"

    wrapper = start(virtualbox, job, first)
    until_said(wrapper, first, "Checkpoint taken")
    seen = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    wrapper.kill()
    wrapper.wait()
    wrapper = start(virtualbox, job, second)
    assert wrapper.wait(LIMIT_S) == 0, second.read_text()

    assert "Going on with the program" in second.read_text()
    counted = "".join(f"{number}\n" for number in range(1, COUNTS + 1)).encode()
    assert hashlib.sha256((tmp_path / "output").read_bytes()).digest() == hashlib.sha256(content + counted).digest()
    assert (tmp_path / "who").read_text() == "root\n"
    for said in (*seen, first.read_text(), second.read_text()):
        assert virtualbox_linux.PASSWORD not in said


def test_an_image_that_starts_the_agent_needs_no_password(virtualbox: Profile, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"input\n")
    (tmp_path / "program.sh").write_text("#!/bin/sh\ncat input >output; id -un >who\n")
    job, log = tmp_path / "job.xml", tmp_path / "log"
    job.write_text(
        JOB.format(
            image=virtualbox_linux.cd(virtualbox_linux.its_agent()), login=f"<user>{virtualbox_linux.USER}</user>"
        )
    )
    wrapper = start(virtualbox, job, log)
    assert wrapper.wait(LIMIT_S) == 0, log.read_text()
    assert (tmp_path / "output").read_bytes() == b"input\n"
    assert (tmp_path / "who").read_text() == f"{virtualbox_linux.USER}\n"
    assert "guestcontrol" not in log.read_text()
