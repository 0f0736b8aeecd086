"""The text of a .vmx file: names and values, each value between quotes.

Source: VMware's open-vm-tools, lib/misc/dictll.c: `|` and two hexadecimal digits stand for a byte that a value can't
have as it is.
"""

import re
from collections.abc import Mapping

_LINE = re.compile(r'^[ \t]*([A-Za-z0-9_.:\-]{1,200})[ \t]*=[ \t]*"([^"\n]*)"[ \t]*$', re.MULTILINE)
_NAME = re.compile(r"[A-Za-z.][A-Za-z0-9_.:]*")
_ESCAPED = re.compile(r"\|([0-9A-Fa-f]{2})")
_ODD = {'"', "|", "\x7f"}


def vmx_text(values: Mapping[str, str]) -> str:
    """The file's text. No value, whatever it is, becomes a line or a name of its own."""
    for name in values:
        if not _NAME.fullmatch(name):
            raise ValueError(f"no name of a setting: {name!r}")
    return '.encoding = "UTF-8"\n' + "".join(f'{name} = "{escaped(value)}"\n' for name, value in values.items())


def escaped(value: str) -> str:
    """The value as it stands between the quotes; what can't be encoded, as the escape sequence of Python's."""
    text = value.encode("utf-8", "backslashreplace").decode()
    return "".join(f"|{ord(letter):02X}" if letter in _ODD or ord(letter) < 0x20 else letter for letter in text)


def vmx_values(text: str) -> Mapping[str, str]:
    """What a .vmx file says, by names in lower case; lines that make no sense are left out."""
    return {name.lower(): unescaped(value) for name, value in _LINE.findall(text.replace("\r\n", "\n"))}


def unescaped(value: str) -> str:
    """The opposite of `escaped`, for values in ASCII and what UTF-8 can have."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), value)
