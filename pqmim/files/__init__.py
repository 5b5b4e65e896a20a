"""Single-image files, ``.pqm``."""
