"""The examples of docs/job-file.md, run as they stand, and the sentences that it quotes."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from .test_job import LIMIT_S, VMWRAPPER, job, vmwrapper, write_job

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("default_image")]

DOC = (Path(__file__).parents[2] / "docs/job-file.md").read_text()
EXAMPLES = re.findall(r"^```xml\n(.*?)^```\n```console\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^\$ (.*\n)((?:(?!\$ ).*\n)*)", re.MULTILINE)
REFUSALS = re.findall(r"^\| `(<.*>)` \| `(.*)` \|$", DOC, re.MULTILINE)
TASK = {"vm": "<vm>default</vm>", "innerjob": "<innerjob>inner.sh</innerjob>"}


def pattern(quoted: str) -> str:
    return ".*".join(map(re.escape, quoted.split("...")))


def test_nothing_escapes_this_test() -> None:
    assert len(EXAMPLES) == DOC.count("```xml") == DOC.count("```console") > 5
    assert len(REFUSALS) == DOC.count("\n| `<") > 20


@pytest.mark.parametrize(
    ("job_file", "console"), EXAMPLES, ids=[re.findall("<innerjob>(.*?)<", x)[0] for x, _ in EXAMPLES]
)
def test_example(tmp_path: Path, job_file: str, console: str) -> None:
    """Before the run, `cat` shows the files that there are; whatever else is in the console is really done."""
    (tmp_path / "job.xml").write_text(job_file)
    environment = os.environ | {"PATH": f"{VMWRAPPER.parent}:{os.environ['PATH']}"}
    has_run, status = False, 0
    for command, expected in COMMANDS.findall(console):
        assert status == 0 or command == "echo $?\n"
        if command.startswith("cat ") and not has_run:
            file = tmp_path / command.removeprefix("cat ").strip()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(expected)
            continue
        done = subprocess.run(
            ["sh", "-c", f"(exit {status}); {command}"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert re.fullmatch(pattern(expected), done.stdout, re.DOTALL), done.stdout
        has_run, status = has_run or command.startswith("vmwrapper run"), done.returncode
    assert has_run
    assert status == 0


@pytest.mark.parametrize(("value", "sentence"), REFUSALS)
def test_refusal(tmp_path: Path, value: str, sentence: str) -> None:
    rest = "".join(tag for name, tag in TASK.items() if f"<{name}>" not in value)
    done = vmwrapper("check", write_job(tmp_path, job(f"<task>{rest}{value}</task>"), inner="true"))
    assert done.returncode == 206, done.stderr
    assert re.search(f": {pattern(sentence)}$", done.stderr, re.MULTILINE), done.stderr
