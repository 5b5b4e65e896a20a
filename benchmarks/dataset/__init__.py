"""How fast codes are read for training: ``python -m benchmarks.dataset``."""
