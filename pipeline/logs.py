"""How jobs and their replicas log: one format, on standard error."""

from __future__ import annotations

import logging

FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NOISY = ("botocore", "aiobotocore", "s3fs", "fsspec", "urllib3")


def set_up(level: int | str, handler: logging.Handler) -> None:
    """Once a process."""
    logging.basicConfig(level=level, format=FORM, handlers=[handler])
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
