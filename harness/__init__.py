"""stance-harness: where a language model stands, what a fine-tune moved, which neurons carried it."""

__version__ = "0.1.0"
