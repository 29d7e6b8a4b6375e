"""The two ways a command can fail that are not bugs."""


class InputError(ValueError):
    """Something the user gave is wrong. One paragraph: what came, what was expected, what exists, what to do. Exit 2."""


class ProofError(RuntimeError):
    """An intervention, hold or patch did not do what it claims, so its result is refused. Exit 3."""


def choices(names: object) -> str:
    """Names for an error message, sorted and comma-separated; `none` when there are none."""
    listed = sorted(str(name) for name in names)  # type: ignore[attr-defined]
    return ", ".join(listed) if listed else "none"
