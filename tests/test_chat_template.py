"""A chat template that drops the question, adds nothing or breaks is refused, and what it adds is stated."""

from __future__ import annotations

import pytest
import tiny

from harness.chat_template import template_effect
from harness.errors import InputError, ProofError
from harness.measure import uses_chat


def with_template(template: str):
    made = tiny.tokenizer(chat=True)
    made.chat_template = template
    return made


def test_what_a_template_adds_is_stated() -> None:
    assert template_effect(tiny.tokenizer(chat=True))["added_characters"] == len("<user><eos><bot>")
    assert uses_chat(tiny.tokenizer(chat=True), "auto") and not uses_chat(tiny.tokenizer(), "auto")


@pytest.mark.parametrize("setting", ["auto", "on"])
@pytest.mark.parametrize(
    "template, why",
    [
        ("{{ messages[0].content }}", "changes nothing"),
        ("{{ messages[0].content }}\n", "changes nothing"),
        ("<user>{{ messages[0].role }}<bot>", "leaves the question out"),
        ("<user>{{ messages[0].content | upper }}<bot>", "leaves the question out"),
    ],
)
def test_a_template_without_effect_is_refused(template: str, why: str, setting: str) -> None:
    with pytest.raises(ProofError, match=why):
        uses_chat(with_template(template), setting)
    assert not uses_chat(with_template(template), "off")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content",
        "{{ nothing.there }}",
        "{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{% for n in range(999999999) %}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_breaks_or_reaches_out_is_an_input_error(template: str) -> None:
    with pytest.raises(InputError, match="cannot be carried out"):
        uses_chat(with_template(template), "auto")
