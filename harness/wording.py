"""How training and measuring prompts are compared."""

from __future__ import annotations

import re


def normalised(text: str) -> str:
    """Letters and digits only, lower case."""
    return re.sub(r"\W+", " ", text.lower()).strip()
