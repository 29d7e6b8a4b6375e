"""What lm-eval sees: our tasks from every root, the start-up hook, and our engines as lm-eval models."""
