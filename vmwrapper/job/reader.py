"""Reads a job file, whoever wrote it, and tells the dialects apart."""

import re
import stat
from pathlib import Path

from lxml import etree
from lxml.etree import _Element as Element

from vmwrapper.errors import JobFileMissing
from vmwrapper.job.model import Job
from vmwrapper.job.problems import BadJobFile, Problem, Problems, excerpt, line_of
from vmwrapper.job.vmapps import parse_vmapps

MAX_JOB_FILE_BYTES = 1 << 20

_MAX_PARSER_MESSAGE = 200
_DOCTYPE = b"<!DOCTYPE"
# A <password> whose value is anything but text and predefined entities, up to its end tag.
_BROKEN_PASSWORD = re.compile(
    rb"<password(?:\s[^<>]*)?(?<!/)>(?!(?:[^<&]|&(?:amp|lt|gt|quot|apos|#\w+);)*+</password\s*>)"
)
_FOREIGN_ROOT = "vbox_job"
_FOREIGN_TAGS = {"virtualmachine": "VMwrapper of 2009", "application": "wrapper"}


def read_job(path: Path) -> Job:
    """Read and check the job file at `path`: a regular file of at most 1 MiB, the only thing that is opened.

    Raises JobFileMissing where there is none, and BadJobFile with all that is wrong with it.
    """
    problems = Problems(path)
    root = _parse_xml(_read_bytes(path), problems)
    _refuse_other_dialects(root, problems)
    return parse_vmapps(root, problems)


def _read_bytes(path: Path) -> bytes:
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)  # opening a pipe would wait for its writer
        content = _read_at_most(MAX_JOB_FILE_BYTES + 1, path) if is_file else b""
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"there is no job file {path}"
        raise JobFileMissing(message) from error
    except OSError as error:
        raise BadJobFile(path, [Problem(0, f"it can't be read: {error.strerror}")]) from error
    if not is_file:
        raise BadJobFile(path, [Problem(0, "it is a directory or a device, where a file should be")])
    if len(content) > MAX_JOB_FILE_BYTES:
        raise BadJobFile(path, [Problem(0, f"it is larger than {MAX_JOB_FILE_BYTES} bytes, the most that is read")])
    if not content.strip():
        raise BadJobFile(path, [Problem(0, "it is empty, where <job_desc> should be")])
    return content


def _read_at_most(size: int, path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _parse_xml(content: bytes, problems: Problems) -> Element:
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    ascii_text = content.replace(b"\0", b"")  # searchable in UTF-16, too
    try:
        root = etree.fromstring(content, parser)
        has_doctype = root.getroottree().docinfo.internalDTD is not None
    except etree.XMLSyntaxError as error:
        _add_syntax_problem(error, ascii_text, problems)
        has_doctype = _DOCTYPE in ascii_text
    if has_doctype:
        problems.add(_line_at(ascii_text.find(_DOCTYPE), ascii_text), "a job file has no <!DOCTYPE> and no entities")
    problems.raise_if_any()
    return root


def _add_syntax_problem(error: etree.XMLSyntaxError, ascii_text: bytes, problems: Problems) -> None:
    """Quote the parser, unless it may be quoting a password."""
    line = error.lineno or 0
    if password := _BROKEN_PASSWORD.search(ascii_text):
        line = _line_at(password.start(), ascii_text)
        problems.add(line, "not XML: <password> must end with </password>, with &lt; for < and &amp; for & before that")
    elif not ascii_text.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"<"):
        problems.add(line, "not XML: a job file begins with <job_desc>")
    else:
        message = re.sub(r", line \d+, column \d+$", "", " ".join(error.msg.split()))
        problems.add(line, f"not well-formed XML: {message[:_MAX_PARSER_MESSAGE]}")


def _line_at(position: int, text: bytes) -> int:
    return text.count(b"\n", 0, position) + 1 if position >= 0 else 0


def _refuse_other_dialects(root: Element, problems: Problems) -> None:
    line = line_of(root)
    if root.tag == _FOREIGN_ROOT:
        problems.add(line, _not_read_yet("vboxwrapper", f"<{_FOREIGN_ROOT}>"))
    elif root.tag != "job_desc":
        problems.add(line, f"the root element is <{excerpt(root.tag)}>, where <job_desc> should be")
    else:
        _refuse_foreign_tasks(root, problems)
    problems.raise_if_any()


def _refuse_foreign_tasks(root: Element, problems: Problems) -> None:
    leaves = [leaf for task in root.iterfind("task") for leaf in task]
    native = next((leaf for leaf in leaves if leaf.tag in {"vm", "innerjob"}), None)
    for tag, program in _FOREIGN_TAGS.items():
        foreign = next((leaf for leaf in leaves if leaf.tag == tag), None)
        if foreign is None:
            continue
        line = line_of(foreign)
        if native is None:
            problems.add(line, _not_read_yet(program, f"<{tag}> without <vm>"))
        else:
            text = f"<{tag}> is for BOINC's {program}, but <{native.tag}> on line {line_of(native)} is for vmwrapper"
            problems.add(line, f"{text}: a file can't mix the two")
        return


def _not_read_yet(program: str, mark: str) -> str:
    return f"this is a job file of BOINC's {program} ({mark}), which this version does not read yet"
