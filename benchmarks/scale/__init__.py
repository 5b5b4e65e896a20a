"""A job over 10^10 images on a cluster that is not there: ``python -m benchmarks.scale``."""
