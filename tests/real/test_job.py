"""Whole jobs, run by the program `vmwrapper` in real QEMU guests."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.qemu

VMWRAPPER = Path(sys.executable).with_name("vmwrapper")
EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT_S = 120

DAVID_WEIRS_JOB = """\
<job_desc>
   <task>
       <vm>cernvm-1.01-x86/cernvm-1.01-x86</vm>
       <user>djw03</user>
       <password>guestpass</password>
       <datadir>/tmp</datadir>
       <innerjob>inner.sh</innerjob>
       <partial_credit>0</partial_credit>
       <snapshots>0</snapshots>
       <data>foo.dat</data>
       <output>bar.dat</output>
   </task>
</job_desc>
"""
# The chapters of his sample run, in its order.
DAVID_WEIRS_CHAPTERS = (
    r"Connected to qemu",
    r"Processing task 1 of 1",
    r"VM image cernvm-1\.01-x86/cernvm-1\.01-x86",
    r"Machine created",
    r"Machine is on",
    r"preparing the job",
    r"Copying in input foo\.dat",
    r"Running the program",
    r"Program done",
    r"Copying out output bar\.dat",
    r"Sanitizing the virtual machine: removing foo\.dat",
    r"Sanitizing the virtual machine: removing inner\.sh",
    r"Finish called",
)


def task(program: str, *tags: str) -> str:
    return f"<task><vm>default</vm><innerjob>{program}</innerjob>{''.join(tags)}</task>"


def job(*tasks: str) -> str:
    return f"<job_desc>{''.join(tasks)}</job_desc>"


def write_job(folder: Path, text: str, **programs: str) -> Path:
    """A job file, and beside it its programs: shell scripts by their names without .sh."""
    for name, script in programs.items():
        (folder / f"{name}.sh").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "job.xml").write_text(text)
    return folder / "job.xml"


def vmwrapper(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    argv = [VMWRAPPER, *arguments]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen([VMWRAPPER, *arguments], stderr=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], chapter: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if chapter in line:
            return
    pytest.fail(f"the log ended before {chapter!r}")


def machine_of(process: subprocess.Popen[str]) -> psutil.Process:
    (machine,) = psutil.Process(process.pid).children()
    return machine


@pytest.fixture(autouse=True)
def needs_default_image(default_image: Path) -> None:
    pass


def test_example_runs_and_its_guest_is_not_the_host(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    (tmp_path / "hubble.out").unlink(missing_ok=True)
    done = vmwrapper("run", tmp_path / "job.xml")
    assert done.returncode == 0, done.stderr
    assert "H0 = 423.9 +-" in (tmp_path / "hubble.out").read_text()
    found = re.search(r"boot id ([0-9a-f-]{36}), kernel (\S+)", done.stderr)
    assert found is not None
    assert found[1] != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert found[2] != platform.release()


def test_david_weirs_job_runs_unchanged_with_his_chapters(tmp_path: Path, default_image: Path) -> None:
    (tmp_path / "cernvm-1.01-x86").mkdir()
    (tmp_path / "cernvm-1.01-x86/cernvm-1.01-x86.vmguest").symlink_to(default_image)
    (tmp_path / "job.xml").write_text(DAVID_WEIRS_JOB)
    (tmp_path / "inner.sh").write_text("cd /tmp; cat foo.dat > bar.dat")
    (tmp_path / "foo.dat").write_bytes(b"\0foo\xff" * 1000)
    done = vmwrapper(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bar.dat").read_bytes() == (tmp_path / "foo.dat").read_bytes()
    assert re.search(".*".join(DAVID_WEIRS_CHAPTERS), done.stderr, re.DOTALL), done.stderr
    assert "guestpass" not in done.stderr


def test_each_task_gets_a_fresh_machine(tmp_path: Path) -> None:
    boot = "cat /proc/sys/kernel/random/boot_id > $OUT; ls -A > seen-$OUT; [ ! -e /marked ] && touch /marked"
    tasks = [
        task(
            "boot.sh",
            f"<setenv>OUT={name}</setenv><output>{name}</output><output>seen-{name}</output><weight>{weight}</weight>",
        )
        for name, weight in (("first", 3), ("second", 1))
    ]
    done = vmwrapper("run", write_job(tmp_path, job(*tasks), boot=boot))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first").read_text() != (tmp_path / "second").read_text()
    assert (tmp_path / "seen-second").read_text().split() == ["boot.sh", "second", "seen-second"]


def test_program_gets_user_arguments_environment_and_files(tmp_path: Path) -> None:
    tags = (
        "<user>ada</user><datadir>/data</datadir><stdin_filename>in</stdin_filename>",
        "<stdout_filename>out</stdout_filename><stderr_filename>err</stderr_filename>",
        "<command_line>'two words' $HOME \"it's\"</command_line><setenv>GREETING=a 'quoted' $word</setenv>",
    )
    script = 'id -un; pwd; for w in "$@"; do echo "<$w>"; done; echo "$GREETING"; cat; echo oops >&2'
    (tmp_path / "in").write_text("from stdin\n")
    done = vmwrapper("run", write_job(tmp_path, job(task("show.sh", *tags)), show=script))
    assert done.returncode == 0, done.stderr
    said = ["ada", "/data", "<two words>", "<$HOME>", "<it's>", "a 'quoted' $word", "from stdin"]
    assert (tmp_path / "out").read_text().splitlines() == said
    assert (tmp_path / "err").read_text() == "oops\n"


def test_datadir_is_a_disk_as_large_as_the_job_says(tmp_path: Path) -> None:
    script = "df -m . | tail -1 > size; dd if=/dev/zero of=big bs=1M count=600 && rm big"
    tags = "<memory_mb>128</memory_mb><disk_mb>800</disk_mb><output>size</output>"
    done = vmwrapper("run", write_job(tmp_path, job(task("fill.sh", tags)), fill=script))
    assert done.returncode == 0, done.stderr
    assert 700 < int((tmp_path / "size").read_text().split()[1]) <= 800


def test_what_the_program_left_running_is_ended(tmp_path: Path) -> None:
    script = "(while :; do echo alive >> late; sleep 0.01; done) & sleep 0.5; cp late result"
    tags = "<output>result</output><output>late</output>"
    done = vmwrapper("run", write_job(tmp_path, job(task("fork.sh", tags)), fork=script))
    assert done.returncode == 0, done.stderr


def test_network_is_absent(tmp_path: Path) -> None:
    script = "ls /sys/class/net > nets; wget -T 1 -q http://10.0.2.2/ 2>/dev/null && exit 9; exit 0"
    done = vmwrapper("run", write_job(tmp_path, job(task("net.sh", "<output>nets</output>")), net=script))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "nets").read_text().split() == ["lo"]


@pytest.mark.parametrize(
    ("script", "status", "sentence"),
    [
        ("echo no good >&2; exit 3", 195, r"failed: exit status 3.*no good"),
        ("kill -SEGV $$", 195, r"failed: killed by signal 11"),
        ("true", 195, r"left no file result"),
        ("mkdir result", 195, r"left no file result"),
        ("ln -s /etc/passwd result", 195, r"left no file result"),
        ("sleep 60", 197, r"ran for longer than its 2 s"),
        ("echo c > /proc/sysrq-trigger; sleep 60", 195, r"end of the guest's console.*RIP.*kernel panicked"),
        ("poweroff -f; sleep 60", 195, r"the guest powered off before the task was done"),
        ("reboot -f; sleep 60", 195, r"the guest rebooted before the task was done"),
    ],
)
def test_failures_in_the_guest_each_have_their_sentence(
    tmp_path: Path, script: str, status: int, sentence: str
) -> None:
    tags = "<output>result</output><time_limit>2</time_limit>"
    done = vmwrapper("run", write_job(tmp_path, job(task("fail.sh", tags)), fail=script))
    assert done.returncode == status, done.stderr
    assert re.search(sentence, done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "result").exists()


def test_missing_output_does_not_keep_the_others(tmp_path: Path) -> None:
    tags = "<output>there</output><output>not-there</output>"
    done = vmwrapper("run", write_job(tmp_path, job(task("half.sh", tags)), half="echo yes > there"))
    assert done.returncode == 195, done.stderr
    assert "left no file not-there" in done.stderr
    assert (tmp_path / "there").read_text() == "yes\n"


def test_guest_that_never_answers_is_a_clear_error(tmp_path: Path) -> None:
    job_file = write_job(tmp_path, job(task("true.sh")), true="true")
    done = vmwrapper("run", job_file, "--boot-limit", "0.5")
    assert done.returncode == 195, done.stderr
    assert "the guest did not become ready within 0.5 s" in done.stderr
    assert "end of the guest's console" in done.stderr


def test_killed_qemu_is_a_temporary_failure(tmp_path: Path) -> None:
    process = start("run", write_job(tmp_path, job(task("sleep.sh")), sleep="sleep 60"))
    read_until(process, "Running the program")
    machine_of(process).kill()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 75, said
    assert "QEMU was killed by signal 9" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("chapter", ["Machine created", "Machine is on", "Running the program"])
def test_interruption_ends_it_cleanly_in_every_chapter(tmp_path: Path, number: int, chapter: str) -> None:
    process = start("run", write_job(tmp_path, job(task("sleep.sh")), sleep="sleep 60"))
    read_until(process, chapter)
    asked_at = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - asked_at < 4
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert ("Checkpoint taken" in said) == (chapter == "Running the program")


def test_second_interruption_ends_it_at_once(tmp_path: Path) -> None:
    process = start("run", write_job(tmp_path, job(task("sleep.sh")), sleep="sleep 60"))
    read_until(process, "Running the program")
    machine = machine_of(process)
    os.kill(process.pid, signal.SIGINT)
    read_until(process, "once more")
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode in (-signal.SIGINT, 130)
    psutil.wait_procs([machine], timeout=5)
    assert not machine.is_running()
    shutil.rmtree(tmp_path / ".vmwrapper", ignore_errors=True)
    (tmp_path / "boinc_lockfile").unlink(missing_ok=True)


def test_killed_wrapper_takes_qemu_with_it_and_the_next_run_succeeds(tmp_path: Path) -> None:
    script = "[ -e again ] || sleep 60; echo done > result"
    tags = "<data>again</data><output>result</output>"
    job_file = write_job(tmp_path, job(task("twice.sh", "<output>result</output>")), twice=script)
    process = start("run", job_file)
    read_until(process, "Running the program")
    machine = machine_of(process)
    process.kill()
    process.communicate()
    machine.wait(timeout=5)
    assert (tmp_path / ".vmwrapper").exists()
    (tmp_path / "again").touch()
    done = vmwrapper("run", write_job(tmp_path, job(task("twice.sh", tags)), twice=script))
    assert done.returncode == 0, done.stderr


def test_two_wrappers_never_share_a_folder(tmp_path: Path) -> None:
    job_file = write_job(tmp_path, job(task("sleep.sh")), sleep="sleep 60")
    process = start("run", job_file)
    read_until(process, "Processing")
    second = vmwrapper("run", job_file)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert second.returncode == 75, second.stderr
    assert "another vmwrapper is at work" in second.stderr


def test_secrets_and_foreign_environment_stay_out_of_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("SECRET", "hunter2")
    tags = "<password>hunter2</password>"
    process = start("run", write_job(tmp_path, job(task("sleep.sh", tags)), sleep="sleep 60"))
    read_until(process, "Running the program")
    machine = machine_of(process)
    environment, words = machine.environ(), machine.cmdline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert "LD_LIBRARY_PATH" not in environment
    assert "SECRET" not in environment
    assert "hunter2" not in f"{environment} {words} {said}"


def test_check_and_probe_answer(tmp_path: Path) -> None:
    good = vmwrapper("check", EXAMPLES / "job.xml")
    assert (good.returncode, good.stderr) == (0, "")
    bad = vmwrapper("check", write_job(tmp_path, "<job_desc>\n<task>\n<inerjob>x</inerjob></task></job_desc>"))
    assert bad.returncode == 206
    assert "line 3" in bad.stderr
    assert "<innerjob>" in bad.stderr
    qemu, virtualbox, vmware = json.loads(vmwrapper("probe", "--json").stdout)
    assert (qemu["name"], virtualbox["name"], vmware["name"]) == ("qemu", "virtualbox", "vmware")
    assert qemu["usable"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", qemu["version"])


def hide_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def old_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_qemu(monkeypatch, tmp_path, "echo QEMU emulator version 6.2.0")


def broken_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_qemu(monkeypatch, tmp_path, "echo GLIBC_2.38 not found >&2; exit 1")


def fake_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("VMWRAPPER_CACHE", str(tmp_path / "cache"))


def hide_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMWRAPPER_CACHE", str(tmp_path))


def remove_input(_monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "true.sh").unlink()


def remove_job_file(_monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "job.xml").unlink()


@pytest.mark.parametrize(
    ("mishap", "status", "sentence"),
    [
        (hide_qemu, 75, "apt-get install qemu-system-x86"),
        (old_qemu, 75, "QEMU is too old: 7.0 or newer is needed"),
        (broken_qemu, 75, "GLIBC_2.38 not found"),
        (hide_image, 206, "vmwrapper image build"),
        (remove_input, 206, "the input 'true.sh' is missing"),
        (remove_job_file, 148, "there is no job file"),
    ],
)
def test_what_is_missing_on_the_host_has_its_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mishap: Callable[[pytest.MonkeyPatch, Path], None],
    status: int,
    sentence: str,
) -> None:
    job_file = write_job(tmp_path, job(task("true.sh")), true="true")
    mishap(monkeypatch, tmp_path)
    done = vmwrapper("run", job_file)
    assert done.returncode == status, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
