"""Speed as ratios against named baselines, each measured in one run: ``make bench``."""
