"""What a guest said, made harmless to print."""


def printable(said: bytes) -> str:
    """Text without control characters but line breaks: nothing in it moves a terminal's cursor or rings its bell."""
    text = said.decode(errors="replace").replace("\r\n", "\n").strip()
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)
