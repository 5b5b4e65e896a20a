"""PQ-MIM: image compression with product-quantized masked image modelling.

    from pqmim import Codec

    codec = Codec.load()
    data = codec.compress(image)  # PIL, numpy [H, W, 3], tensor [3, H, W] -> a .pqm file's bytes
    pixels = codec.decompress(data)  # tensor uint8 [3, H, W]

What is named here is imported at first use, so that the package itself needs no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqmim.checkpoint import CheckpointError as CheckpointError
    from pqmim.codec import Codec as Codec
    from pqmim.codec import NoPriorError as NoPriorError
    from pqmim.completion.rule import Rule as Rule
    from pqmim.files.container import BitstreamError as BitstreamError

__version__ = "0.1.0"
__all__ = ["BitstreamError", "CheckpointError", "Codec", "NoPriorError", "Rule", "__version__"]
_PLACES = {
    "BitstreamError": "files.container", "CheckpointError": "checkpoint", "Codec": "codec",
    "NoPriorError": "codec", "Rule": "completion.rule",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"pqmim.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'pqmim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
