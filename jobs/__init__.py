"""Entry points: ``python -m jobs.encode`` and its siblings, alone or under ``ray job submit``."""
