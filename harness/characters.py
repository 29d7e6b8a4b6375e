"""Characters that do not show as what they are: controls, invisible ones, and those that turn the text's direction.

Names that hold one are refused (`checked_name`). Texts are kept as they came and shown with an escape in its place
(`visible`): a terminal then takes no command from a model's answer, and an answer reads in the order in which it stands.
"""

from __future__ import annotations

import re
import reprlib
from typing import Annotated

from pydantic import AfterValidator

from harness.errors import InputError

LONGEST_NAME = 200
# Line breaks and tabs are text, and so are the joiners of Persian, Hindi and emoji; a carriage return alone is not.
HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]|\r(?!\n)"
)


def visible(text: str) -> str:
    r"""The text with an escape such as \x1b or \u202e in place of every hidden character."""
    return HIDDEN.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def one_line(text: str) -> str:
    """What strangers wrote, without line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shown(value: object) -> str:
    """A value as an error message quotes it: short, whatever its size or depth."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 60, 60
    try:
        return short.repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits to print, or a value too deep
        return f"a huge {type(value).__name__}"


def checked_name(name: str, what: str) -> str:
    """The name, if it shows as what it is.

    Raises:
        InputError: an empty or overlong name, or one with a control, invisible or direction-turning character.
    """
    if not name.strip() or len(name) > LONGEST_NAME or HIDDEN.search(name) or "\n" in name or "\t" in name:
        raise InputError(
            f"{what} is {shown(name)}; expected a name of 1 to {LONGEST_NAME} characters on one line, without control "
            "characters and without marks that hide or turn text. Write it anew."
        )
    return name


def checked_file_name(name: str, what: str) -> str:
    """The name, if it can be that of one file or folder and stays where it is put.

    Raises:
        InputError: as `checked_name`; a separator of folders, or a dot in front.
    """
    checked_name(name, what)
    if name.startswith(".") or set(name) & set('/\\:*?"<>|'):
        raise InputError(
            f"{what} is {shown(name)}, which names a folder of the results; expected no dot in front and none of "
            '/ \\ : * ? " < > | in it.'
        )
    return name


# Of pydantic models: what tables are made of, and what also names a folder of the results.
Name = Annotated[str, AfterValidator(lambda name: checked_name(name, "it"))]
FileName = Annotated[str, AfterValidator(lambda name: checked_file_name(name, "it"))]
