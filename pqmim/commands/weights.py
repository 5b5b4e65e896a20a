"""Which weights a ``.pqm`` file is decoded with: those that its header names, unless others are."""

from __future__ import annotations

import threading

from pqmim import checkpoint
from pqmim.checkpoint import CheckpointError
from pqmim.codec import Codec


class Shelf:
    """The codecs of a command, each loaded once; used from several threads.

    Args:
        asked: weights by path or name; None: those that a file names.
        device: where they run.
    """

    def __init__(self, asked: str | None, device: str) -> None:
        self.asked, self.device = asked, device
        self._codecs: dict[str, Codec] = {}
        self._lock = threading.Lock()

    def of(self, model: bytes) -> Codec:
        """The codec of a file whose header begins a fingerprint so.

        Raises:
            CheckpointError: the weights are not here, and where to put them; or are damaged.
        """
        name = self.asked if self.asked is not None else model.hex()
        with self._lock:
            if name not in self._codecs:
                self._codecs[name] = self._load(name)
            return self._codecs[name]

    def _load(self, name: str) -> Codec:
        if self.asked is None and checkpoint.find(name) is None:
            raise CheckpointError(checkpoint.missing(name))
        return Codec.load(name, self.device)
