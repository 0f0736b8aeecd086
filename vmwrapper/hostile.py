"""What a stranger wrote, made harmless to print: for terminals, and for the client, which looks into the log."""

from collections.abc import Collection

_LONGEST = 4096
_MOST_NAMES = 20
_TAB_WIDTH = 8
_STICKY, _BROKEN = "ERR_CPU_VM_EXTENSIONS_DISABLED", "ERR\N{REPLACEMENT CHARACTER}CPU_VM_EXTENSIONS_DISABLED"
# A client that finds this in the log of an app whose plan class contains `vbox` believes for good that the computer
# can't virtualize. Source: BOINC's client/app_control.cpp, ACTIVE_TASK::read_stderr_file.


def printable(said: bytes | str, *, limit: int = _LONGEST) -> str:
    """The last `limit` characters, without blank edges, as text that no terminal obeys."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    return _obeyed_by_nobody(text[-limit:].replace("\r\n", "\n").strip())


def shown(output: bytes) -> str:
    """All that a command printed, laid out as it wanted, as text that no terminal obeys."""
    return _obeyed_by_nobody(output.decode(errors="replace").replace("\r\n", "\n").expandtabs(_TAB_WIDTH))


def _obeyed_by_nobody(text: str) -> str:
    """The text without control characters but line breaks."""
    replaced = (letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return "".join(replaced).replace(_STICKY, _BROKEN)


def one_line(name: str) -> str:
    """A name on one line, with what can't be printed as an escape sequence of Python's."""
    escaped = (letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)
    return "".join(escaped).replace(_STICKY, _BROKEN)


def some_of(names: Collection[str]) -> list[str]:
    """The first names, each on one line, and the number of the others as words, if there are any."""
    first = [one_line(name) for name in list(names)[:_MOST_NAMES]]
    others = len(names) - len(first)
    return [*first, f"and {others} more"] if others else first
