"""Chat templates prove themselves: one that drops the question, or adds nothing to it, makes figures about something else."""

from __future__ import annotations

import hashlib
from typing import Any

from harness.characters import one_line
from harness.errors import InputError, ProofError

PROBES = ("Which of the two should be first?", "Where does the other road lead?")


def template_effect(tokenizer: Any) -> dict[str, Any]:
    """What the tokenizer's template does to a question: characters added, and its own SHA-256.

    Raises:
        InputError: a template that cannot be carried out.
        ProofError: the question is not in what is asked, or what is asked is the question alone.
    """
    try:
        asked = [
            str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": probe}], tokenize=False, add_generation_prompt=True
                )
            )
            for probe in PROBES
        ]
    except Exception as error:  # Jinja's errors and whatever a template's own expressions raise
        reason = one_line(str(error))[:200]
        raise InputError(
            f"The model's chat template cannot be carried out ({type(error).__name__}: {reason}); use --chat-template off, "
            "or mend it in the model's folder."
        ) from None
    for probe, text in zip(PROBES, asked, strict=True):
        if probe not in text:
            raise ProofError(
                "The model's chat template leaves the question out of what is asked, so every question would be the same; "
                "use --chat-template off, or mend the template in the model's folder."
            )
        if text.strip() == probe:
            raise ProofError(
                "The model's chat template changes nothing: what is asked is the question alone. Use --chat-template off, or "
                "mend the template in the model's folder."
            )
    template = tokenizer.chat_template
    written = template if isinstance(template, str) else repr(template)
    return {
        "added_characters": len(asked[0]) - len(PROBES[0]),
        "template_sha256": hashlib.sha256(written.encode("utf-8", "replace")).hexdigest(),
    }
