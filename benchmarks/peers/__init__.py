"""Our job beside the usual ways to do the same: ``make bench-peers``."""
