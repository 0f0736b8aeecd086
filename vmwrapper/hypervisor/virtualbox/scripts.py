"""What runs in guests of VirtualBox's."""

import re
from importlib.resources import files as package_files

_COMMENTS = re.compile(r"^ *#.*\n", re.MULTILINE)


def script(name: str) -> str:
    """A shell script of this package's, without its comments."""
    return _COMMENTS.sub("", (package_files(__package__) / name).read_text())
