"""Which files of the host a job's names stand for, and which are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vmwrapper.errors import JobError
from vmwrapper.folders import image_folder
from vmwrapper.job.reader import read_job
from vmwrapper.job.resolve import ResolvedTask, resolve_job


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    folder = tmp_path / "slot"
    folder.mkdir()
    for name in ("guest.img", "program", "other-program"):
        (folder / name).touch()
    return folder


def resolved(slot: Path, *tags: str) -> tuple[ResolvedTask, ...]:
    return resolved_by(slot, slot.joinpath, None, *tags)


def resolved_by(
    slot: Path, resolve: Callable[[str], Path | None], project_dir: Path | None, *tags: str
) -> tuple[ResolvedTask, ...]:
    """`resolve` may leave a name to the slot."""
    tasks = [f"<task><vm>guest</vm><innerjob>program</innerjob>{each}</task>" for each in tags]
    job_file = slot / "my.xml"
    job_file.write_text(f"<job_desc>{''.join(tasks)}</job_desc>")
    suffixes = [(".img",)] * len(tasks)
    return resolve_job(
        read_job(job_file),
        job_file,
        lambda name: resolve(name) or slot / name,
        slot=slot,
        project_dir=project_dir,
        image_suffixes=suffixes,
    )


def test_names_are_looked_up_in_the_slot(slot: Path) -> None:
    (slot / "link").symlink_to("place")
    for name in ("in", "tool.tar"):
        (slot / name).touch()
    tags = "<data>in</data><package>tool.tar</package><output>out</output><stdout_filename>link</stdout_filename>"
    [task] = resolved(slot, tags)
    assert task.image == slot / "guest.img"
    assert task.inputs == {"program": slot / "program", "in": slot / "in"}
    assert task.packages == {"tool.tar": slot / "tool.tar"}
    assert task.outputs == {"out": slot / "out", "link": slot / "place"}


def test_a_later_task_reads_what_an_earlier_one_writes(slot: Path) -> None:
    tasks = resolved(slot, "<output>between</output>", "<data>between</data>")
    assert tasks[1].inputs["between"] == slot / "between"


@pytest.mark.parametrize(
    ("links", "tags", "sentence"),
    [
        ({"out": "../outside"}, ["<output>out</output>"], "'out' would be written outside of"),
        ({"out": "/etc/passwd"}, ["<output>out</output>"], "'out' would be written outside of"),
        ({"d": "/etc"}, ["<output>d/passwd</output>"], "'d/passwd' would be written outside of"),
        ({"d": "."}, ["<output>d</output>"], "'d' would replace a directory"),
        ({"a": "b"}, ["<output>a</output><output>b</output>"], "'b' would be written to the same file as 'a'"),
        ({"a": "b"}, ["<output>a</output>", "<output>b</output>"], "'b' would be written to the same file as 'a'"),
        ({"out": "my.xml"}, ["<output>out</output>"], "'out' would overwrite the job file"),
        ({"out": "guest.img"}, ["<output>out</output>"], "'out' would overwrite a base image"),
        ({"out": "program"}, ["<output>out</output>"], "'out' would overwrite a program"),
        ({"out": "init_data.xml"}, ["<output>out</output>"], "'out' would overwrite one of the wrapper's own files"),
        ({"out": ".vmwrapper/x"}, ["<output>out</output>"], "'out' would overwrite one of the wrapper's own files"),
        ({"in": "init_data.xml"}, ["<data>in</data>"], "'in' is one of the wrapper's own files"),
        ({"in": "in"}, ["<data>in</data>"], "'in' is missing"),
        ({}, ["<data>in</data>"], "'in' is missing"),
        ({}, ["<package>in.deb</package>"], "'in.deb' is missing"),
        ({}, ["<data>in</data>", "<output>in</output>"], "'in' is missing"),
        ({}, ["<output>d/out</output>"], "'d/out' has no directory to go to"),
    ],
)
def test_what_is_refused(slot: Path, links: dict[str, str], tags: list[str], sentence: str) -> None:
    for name, target in links.items():
        (slot / name).symlink_to(target)
    with pytest.raises(JobError, match=sentence):
        resolved(slot, *tags)


class TestUnderTheClient:
    """There is a project's directory, to which names lead."""

    @pytest.fixture
    def project_dir(self, slot: Path) -> Path:
        folder = slot.parent / "project"
        folder.mkdir()
        for name in ("in_1", "guest_1"):
            (folder / name).touch()
        return folder

    def test_files_may_lie_there(self, slot: Path, project_dir: Path) -> None:
        (slot / "guest.img").unlink()
        names = {"in": "in_1", "out": "wu_0_0", "guest.img": "guest_1"}
        [task] = resolved_by(
            slot,
            lambda name: project_dir / names[name] if name in names else slot / name,
            project_dir,
            "<data>in</data><output>out</output>",
        )
        assert task.image == project_dir / "guest_1"
        assert task.inputs == {"program": slot / "program", "in": project_dir / "in_1"}
        assert task.outputs == {"out": project_dir / "wu_0_0"}

    @pytest.mark.parametrize(
        ("name", "tags", "sentence"),
        [
            ("in", "<data>in</data>", "'in' lies outside of .*slot and .*project: .*outside"),
            ("program", "", "'program' lies outside of"),
            ("tool.tar", "<package>tool.tar</package>", "'tool.tar' lies outside of"),
            ("guest", "", "the base image 'guest' lies outside of"),
            ("out", "<output>out</output>", "'out' would be written outside of"),
        ],
    )
    def test_nothing_may_lie_elsewhere(
        self, slot: Path, project_dir: Path, name: str, tags: str, sentence: str
    ) -> None:
        outside = slot.parent / "outside"
        outside.touch()
        (project_dir / "link").symlink_to(outside)
        for place in (outside, project_dir / "link", project_dir / ".." / "outside"):
            with pytest.raises(JobError, match=sentence):
                resolved_by(slot, {name: place}.get, project_dir, tags)


def test_a_missing_image_is_said_with_all_places(slot: Path) -> None:
    (slot / "guest.img").unlink()
    with pytest.raises(JobError) as caught:
        resolved(slot, "")
    looked = f"no {slot / 'guest'}.* and no {image_folder() / 'guest'}.*"
    assert f"there is no base image 'guest': {looked}" in str(caught.value)


@pytest.mark.parametrize("name", ["/", "//", ".", "..", "a/"])
def test_an_image_has_any_name(slot: Path, name: str) -> None:
    (slot / "my.xml").write_text(f"<job_desc><task><vm>{name}</vm><innerjob>program</innerjob></task></job_desc>")
    with pytest.raises(JobError, match="there is no base image"):
        resolve_job(read_job(slot / "my.xml"), slot / "my.xml", slot.joinpath, slot=slot, image_suffixes=[(".img",)])


def test_an_output_that_is_a_loop_of_links_replaces_it(slot: Path) -> None:
    (slot / "out").symlink_to("out")
    [task] = resolved(slot, "<output>out</output>")
    assert task.outputs == {"out": slot / "out"}
