"""The two ways a command can fail that are not bugs. What they say is one paragraph, whatever strangers' texts are in it."""

MOST = 3000  # characters of a paragraph


class InputError(ValueError):
    """Something the user gave is wrong. One paragraph: what came, what was expected, what exists, what to do. Exit 2."""

    def __init__(self, said: object = "") -> None:
        super().__init__(_paragraph(str(said)))


class ProofError(RuntimeError):
    """An intervention, hold or patch did not do what it claims, so its result is refused. Exit 3."""

    def __init__(self, said: object = "") -> None:
        super().__init__(_paragraph(str(said)))


def _paragraph(text: str) -> str:
    """On one line, without characters that do not show, and not too long to read."""
    line = text if text.isprintable() else " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MOST else f"{line[:MOST]} ..."


def choices(names: object) -> str:
    """Names for an error message, sorted and comma-separated; `none` when there are none."""
    listed = sorted(str(name) for name in names)  # type: ignore[attr-defined]
    return ", ".join(listed) if listed else "none"
