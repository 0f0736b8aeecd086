"""What was found out of a program or an image before and need not be found out again."""

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

_FILE_LIMIT_BYTES = 16384


def identity(file: Path) -> dict[str, object]:
    """What changes when a file is replaced; part of every question about it. Raises OSError where there is none."""
    real = file.resolve(strict=True)
    found = real.stat()
    return {
        "file": str(real),
        "device": found.st_dev,
        "inode": found.st_ino,
        "size_bytes": found.st_size,
        "mtime_ns": found.st_mtime_ns,
    }


def recall(file: Path, question: dict[str, object]) -> Any:
    """What was kept in the file as the answer to just this question, or None. The file may be a stranger's work."""
    try:
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            found = json.loads(stream.read(_FILE_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    match found:
        case {"question": asked, "answer": answer} if asked == question:
            return answer
    return None


def keep(file: Path, question: dict[str, object], answer: object) -> None:
    """Keep an answer for `recall`, instead of what the file held. Not being able to is no error."""
    # Not synced: a file that a power cut tears is ignored.
    content = json.dumps({"question": question, "answer": answer})
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            written = Path(scratch, file.name)
            written.write_text(content, encoding="ascii")
            written.replace(file)
