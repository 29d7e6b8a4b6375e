"""Topics: what is asked. `topic.py` says what one holds, `files.py` reads them, `check.py` judges them."""

from harness.topics.explain import explain
from harness.topics.files import LM_EVAL_CLASS, all_topics, find_topics, is_topic_file, load_topic
from harness.topics.topic import FORMATS, GROUP, Axes, Choice, Item, Prompt, Side, Statement, Topic

__all__ = [
    "FORMATS",
    "GROUP",
    "LM_EVAL_CLASS",
    "Axes",
    "Choice",
    "Item",
    "Prompt",
    "Side",
    "Statement",
    "Topic",
    "all_topics",
    "explain",
    "find_topics",
    "is_topic_file",
    "load_topic",
]
