"""What a script for the client's twin may say, and what its author is told otherwise."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.twin.script import LARGEST_BYTES, BadScript, Step, Verb, parse_script, read_script

from .fuzzing import fuzzed

EVERY_STEP = """\
# a comment

wait 1.5
wait for "Running the program"   # and another
  wait for   Machine is on
suspend
resume
quit
start
kill
start
heartbeats off
heartbeats on
network off
network on
reread
trickle down '# more work'
cpu limit 50
abort
"""


def steps(text: str) -> list[Step]:
    found, problems = parse_script(text.encode())
    assert problems == []
    return list(found)


def complaints(text: str) -> list[str]:
    return [str(problem) for problem in parse_script(text.encode())[1]]


def test_every_step_is_understood() -> None:
    found = steps(EVERY_STEP)
    assert [step.line for step in found] == list(range(3, 20))
    assert {step.verb for step in found} == set(Verb)
    assert found[0] == Step(3, Verb.WAIT, number=1.5)
    assert found[1] == Step(4, Verb.WAIT_FOR, text="Running the program")
    assert found[2] == Step(5, Verb.WAIT_FOR, text="Machine is on")
    assert found[14] == Step(17, Verb.TRICKLE_DOWN, text="# more work")
    assert found[15] == Step(18, Verb.CPU_LIMIT, number=50)


def test_an_empty_script_has_no_steps() -> None:
    assert steps("# nothing\n\n") == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pause", "line 1: `pause` is no step; there are `wait for`, `wait`, `suspend`"),
        ("wait", "line 1: `wait` needs a number above 0, at most 86400 s; it is ``"),
        ("wait -1", "it is `-1`"),
        ("wait nan", "it is `nan`"),
        ("wait 1e9", "it is `1e9`"),
        ("wait for", "line 1: `wait for` needs a text of the log"),
        ("wait for it's", "line 1: a quote is not closed"),
        ("suspend now\nresume", "line 1: `suspend` stands alone; behind it is `now`"),
        ("cpu limit 101", "line 1: `cpu limit` needs a number above 0, at most 100 %"),
        ("trickle down", "line 1: `trickle down` needs a text of at most 4096 bytes"),
        ("heartbeats", "line 1: `heartbeats` is no step"),
        ("wait 1\n\nsuspend", "line 3: the job would stay suspended for ever: `resume` it"),
        ("quit\nsuspend\nresume", "line 2: no app runs since the `quit` on line 1: `start` it before"),
        ("kill\nwait for x", "line 2: no app runs since the `kill` on line 1"),
        ("start", "line 1: the app runs: `start` goes behind `quit` or `kill`"),
        ("abort\nwait 1", "line 2: nothing can follow the `abort` on line 1: the job is over"),
        ("wait for a\x1b[2Jb", "line 1: it has control characters"),
    ],
)
def test_what_is_wrong_is_said(text: str, complaint: str) -> None:
    assert any(complaint in each for each in complaints(text)), complaints(text)


@pytest.mark.parametrize(
    "text", ["suspend\nquit", "suspend\nkill\nstart", "suspend\nabort", "quit\nwait 1\nstart\nquit"]
)
def test_what_makes_sense_is_no_problem(text: str) -> None:
    assert complaints(text) == []


def test_all_problems_are_named_in_their_order(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"start\npuase\nwait 1\nwait x\n\xff\n")
    with pytest.raises(BadScript) as refused:
        read_script(script)
    assert refused.value.exit_status == 206
    assert [line.split(":")[0] for line in str(refused.value).splitlines()[1:]] == [f"  line {n}" for n in (1, 2, 4, 5)]


def test_a_script_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadScript, match="No such file"):
        read_script(tmp_path / "script")
    (tmp_path / "large").write_bytes(b"#" * (LARGEST_BYTES + 1))
    with pytest.raises(BadScript, match="larger than 1048576 bytes"):
        read_script(tmp_path / "large")


@fuzzed
@given(st.lists(st.sampled_from([*EVERY_STEP.split(), "\n", '"', "'", "#", "\\", "-1", "1e400", "\0", "ü"])))
def test_any_words_give_steps_or_problems(words: list[str]) -> None:
    check(" ".join(words).encode())


@fuzzed
@given(st.binary())
def test_any_bytes_give_steps_or_problems(content: bytes) -> None:
    check(content)


def check(content: bytes) -> None:
    found, problems = parse_script(content)
    lines = content.count(b"\n") + 1
    for problem in problems:
        assert 1 <= problem.line <= lines
        assert problem.text.isprintable()
    if not problems:
        again = "\n".join(f'{step.verb.value} "{step.text}"' if step.text else str(step) for step in found)
        if '"' not in "".join(step.text for step in found) and "\\" not in again:
            assert [(step.verb, step.text) for step in steps(again)] == [(step.verb, step.text) for step in found]
