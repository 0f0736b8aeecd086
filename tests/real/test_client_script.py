"""Jobs that a client's twin suspends, ends, kills and starts again, and the example of docs/client-script.md."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .test_job import LIMIT_S, VMWRAPPER, job, read_until, start, task, vmwrapper, write_job
from .test_job_file_doc import COMMANDS, pattern

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("default_image")]

DOC = (Path(__file__).parents[2] / "docs/client-script.md").read_text()
EXAMPLES = re.findall(r"^```xml\n(.*?)^```\n```console\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
# A paused guest's uptime stands still, its program has not heard of the host's time.
COMPUTE = """\
now() { cut -d. -f1 /proc/uptime; }
begin=$(now)
while [ $(now) -lt $((begin + 5)) ]; do :; done
tr a-z A-Z <in/data >out; echo $(($(now) - begin)) >>out"""
TAGS = "<data>in/data</data><output>out</output>"
RUNNING = 'wait for "Running the program"'


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/data").write_text("input")
    return write_job(tmp_path, job(task("compute.sh", TAGS)), compute=COMPUTE)


def script(job_file: Path, *steps: str) -> Path:
    path = job_file.with_name("script.txt")
    path.write_text("\n".join(steps) + "\n")
    return path


def play(job_file: Path, *steps: str) -> subprocess.CompletedProcess[str]:
    before = {path.name for path in job_file.parent.iterdir()} | {"script.txt", "out"}
    done = vmwrapper("run", "--client-script", script(job_file, *steps), job_file)
    assert {path.name for path in job_file.parent.iterdir()} <= before
    return done


def has_output(job_file: Path) -> bool:
    return job_file.with_name("out").read_text() in ("INPUT5\n", "INPUT6\n", "INPUT7\n")


def test_a_job_runs_as_it_would_under_the_client(job_file: Path) -> None:
    done = play(job_file)
    assert done.returncode == 0, done.stderr
    assert has_output(job_file)
    assert "left behind" not in done.stderr
    [cpu_time] = re.findall(r"seen last: 100.0 % done, ([\d.]+) s of CPU time", done.stderr)
    assert float(cpu_time) > 4


def test_suspend_and_resume(job_file: Path) -> None:
    done = play(job_file, RUNNING, "suspend", "wait 5", "resume")
    assert done.returncode == 0, done.stderr
    assert has_output(job_file)
    assert done.stderr.count("Running the program:") == 1


# What is killed may have been writing its record.
@pytest.mark.parametrize(
    ("step", "left"), [("quit", ""), ("kill", r"left behind by the app: (\S+\.new, )?boinc_lockfile\n")]
)
def test_an_app_that_was_ended_goes_on(job_file: Path, step: str, left: str) -> None:
    done = play(job_file, RUNNING, "quit", "start", "wait for Going on with the program", step)
    assert done.returncode == 0, done.stderr
    assert has_output(job_file)
    assert done.stderr.count("client: started the app") == 3
    assert done.stderr.count("Running the program:") == 1
    assert done.stderr.count("Going on with the program:") == 2
    assert re.fullmatch(left, "".join(re.findall(r"left behind.*\n", done.stderr)))


def test_an_aborted_job_leaves_nothing(job_file: Path) -> None:
    done = play(job_file, RUNNING, "abort")
    assert done.returncode == 203, done.stderr
    assert "aborted on request" in done.stderr
    assert "left behind" not in done.stderr
    assert not job_file.with_name("out").exists()


def test_lost_heartbeats_end_the_app(job_file: Path) -> None:
    job_file.with_name("compute.sh").write_text("#!/bin/sh\necho INPUT4 >out\n[ -e in/again ] || sleep 600\n")
    done = play(job_file, RUNNING, "heartbeats off", "wait for The client is gone", "abort")
    assert done.returncode == 203, done.stderr
    assert "Checkpoint taken" in done.stderr
    [asked, heard] = re.findall(
        r"(\d\d:\d\d:\d\d) .*(?:client: line 2: heartbeats off|\d\): The client is gone)$", done.stderr, re.MULTILINE
    )
    lasted_s = seconds(heard) - seconds(asked)
    assert 28 <= lasted_s % 86400 <= 32
    assert "left behind" not in done.stderr


def seconds(clock: str) -> int:
    hours, minutes, rest = map(int, clock.split(":"))
    return hours * 3600 + minutes * 60 + rest


def test_ctrl_c_is_the_shutdown_of_the_client(job_file: Path) -> None:
    process = start("run", "--client-script", script(job_file), job_file)
    read_until(process, "Running the program")
    asked_at = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - asked_at < 4
    assert process.returncode == 130, said
    assert "stopped on request" in said
    assert "left behind" not in said


def test_options_are_the_apps(job_file: Path) -> None:
    done = vmwrapper("--boot-limit", "0.5", "run", "--client-script", script(job_file), "--backend", "qemu", job_file)
    assert done.returncode == 195
    assert "the guest did not become ready within 0.5 s" in done.stderr


def test_what_can_not_be_played_is_refused_before_anything_starts(job_file: Path, tmp_path: Path) -> None:
    done = play(job_file, "supsend", "wait for ever and", "start")
    assert done.returncode == 206
    assert re.search("line 1: .*\n.*line 3: ", done.stderr)
    job_file.write_text(job(task("compute.sh", "<inpt>x</inpt>")))
    assert play(job_file).returncode == 206
    job_file.unlink()
    assert play(job_file).returncode == 148
    assert vmwrapper("run", "--keep", "--client-script", "x", job_file).returncode == 206


def test_files_that_no_project_could_send_are_refused(job_file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "data"
    elsewhere.write_text("input")
    (job_file.with_name("in") / "data").unlink()
    (job_file.with_name("in") / "data").symlink_to(elsewhere)
    done = play(job_file)
    assert done.returncode == 206
    assert "the input 'in/data' lies outside of" in done.stderr


def test_an_image_beside_the_job_file_is_linked(job_file: Path, default_image: Path) -> None:
    (job_file.with_name("my.vmguest")).write_bytes(default_image.read_bytes())
    job_file.write_text(job_file.read_text().replace("default", "my"))
    done = play(job_file)
    assert done.returncode == 0, done.stderr
    assert has_output(job_file)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    [(job_text, console)] = EXAMPLES
    (tmp_path / "job.xml").write_text(job_text)
    environment = os.environ | {"PATH": f"{VMWRAPPER.parent}:{os.environ['PATH']}"}
    has_run = False
    for command, expected in COMMANDS.findall(console):
        if command.startswith("cat ") and not has_run:
            (tmp_path / command.removeprefix("cat ").strip()).write_text(expected)
            continue
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
        said = re.sub(r"(?<=left behind by the app: )\S+\.new, ", "", done.stdout)  # it was just writing the record
        assert re.fullmatch(pattern(expected), said, re.DOTALL), done.stdout
        has_run = True
    assert has_run
