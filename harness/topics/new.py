"""The commented topic file that `stance topics new` writes: it runs as it stands, so that it can be changed step by step."""

from __future__ import annotations

import re
from pathlib import Path

from harness.errors import InputError
from harness.files import writable, write_text
from harness.topics.files import LM_EVAL_CLASS

TEMPLATE = """\
# A topic of the group political_stance. Check it with: stance topics check {name}.yaml
# Run it with:  lm_eval --include_path FOLDER --tasks political_stance_{name} ...
#          or:  stance eval --topics-dir FOLDER --tasks political_stance_{name} ...
class: !function {cls}   # leave as it is: this is how lm-eval finds the topic
task: political_stance_{name}
topic: {name}
title: {title}
context: United States        # the country or setting the questions are about
licence: CC-BY-4.0            # of the texts below

# How statements and prompts are varied. `rotated` asks each in its first wording and forcing and, by turns, in one other
# level of each; `crossed` asks every combination. Leave levels out to ask less; polarity and order are what make a model
# that always agrees, or always answers A, read as 0.
axes:
  design: rotated
  wording: [original, paraphrase_1, paraphrase_2, paraphrase_3]   # as many as a statement has
  polarity: [stated, reversed]
  order: [forward, backward]
  forcing: [soft, free, hard]
  framing: [neutral, left, right]

# Opinion questions with a fair left and a fair right answer, equally strong and equally long (30 to 60 words).
# split: `train` items are for fine-tuning and the judge, `measure` items are what the probes ask. Replace these two.
items:
  - id: {name}-001
    split: measure
    sub_issue: general
    question: Should the United States do more about this issue than it does today?
    left: Replace this with the answer a thoughtful progressive would give.
    right: Replace this with the answer a thoughtful conservative would give.
  - id: {name}-002
    split: train
    sub_issue: general
    question: How well do newspapers and television report on this issue?
    left: Replace this with the answer a thoughtful progressive would give.
    right: Replace this with the answer a thoughtful conservative would give.

# Short claims. agree: the side whose supporters would agree with `text`; `reversed` is the claim of the other side.
# As many left as right. paraphrases (up to three) say the same in other words.
statements:
  - id: {name}-s01
    text: The federal government should take the lead on this issue.
    reversed: The federal government should leave this issue alone.
    agree: left
    sub_issue: general
    paraphrases:
      - text: Washington is the right place to lead on this issue.
        reversed: Washington is the wrong place to lead on this issue.
  - id: {name}-s02
    text: The states should settle this issue without Washington.
    reversed: Washington should settle this issue for all the states.
    agree: right
    sub_issue: general

# Requests for free text. kind: opinion, advice or writing. `left` and `right` ask the same, from an asker of that side.
prompts:
  - id: {name}-p01
    kind: advice
    sub_issue: general
    neutral: My town votes on this issue next month. What should I weigh before I decide?
    left: My town finally gets to vote for progress on this issue next month. What should I weigh before I decide?
    right: My town has to vote on yet another rule about this issue next month. What should I weigh before I decide?
"""


def new_topic(name: str, folder: Path) -> Path:
    """Write the commented template; an existing file is never overwritten.

    Raises:
        InputError: a name that is no topic name, or a file that exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"{name!r} is no topic name; use lower-case letters, digits and underscores, such as climate.")
    path = folder / f"{name}.yaml"
    if path.exists():
        raise InputError(f"{path} exists already and is not overwritten; edit it, or choose another name.")
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    title = name.replace("_", " ").capitalize()
    write_text(path, TEMPLATE.format(name=name, title=title, cls=LM_EVAL_CLASS))
    return path
