"""Where stage 1 begins: principal components, dealt out to sub-codes in layers.

The linear maps beside the trunks start at the leading principal components of the patches.  Reverse
water-filling gives component k log2(sigma_k / theta) bits; consecutive components share a sub-code
until its bits are spent.  So sub-code 0 holds two or three strong components, the last ones d weak
ones, and every prefix of the sub-codes is close to the best of its rate.

One water level serves one rate.  The next layer is dealt what the first one leaves of each of its
sub-codes, in parts of its own dimensions, and then the components that the first one has no bits
for.  Its parts never mix channels of two sub-codes: those of one sub-code share a scale, so that
the squared error of a part is that of the pixels times one number.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pqmim.autoencoder.config import AutoencoderConfig
from pqmim.autoencoder.network import PQVAE
from pqmim.autoencoder.quantizer import NONE


@dataclass(frozen=True)
class Layer:
    """Sub-codes that share a water level."""

    subcodes: int
    dims: int
    bits: float  # of water-filling, on average a sub-code; the first layer's alone decides


LAYERS = (Layer(32, 8, 6.0), Layer(64, 4, 5.0))


def with_layers(
    config: AutoencoderConfig, layers: tuple[Layer, ...], prices: tuple[float, ...]
) -> AutoencoderConfig:
    """The description of a model whose sub-codes come in these layers."""
    return dataclasses.replace(
        config, subcodes=sum(layer.subcodes for layer in layers), prices=prices,
        subcode_dims=max(layer.dims for layer in layers),
        layers=tuple(layer.subcodes for layer in layers),
        channels=max(layer.subcodes * layer.dims for layer in layers),
    )  # fmt: skip


def water_filling(energy: list[float], layer: Layer) -> list[int]:
    """How many components, strongest first, each sub-code of the first layer has."""
    most = layer.subcodes * layer.dims
    deviation = [math.log2(max(e, 1e-12)) / 2 for e in energy[:most]]
    budget = layer.bits * layer.subcodes
    low, high = min(deviation) - budget, max(deviation)
    for _ in range(60):
        theta = (low + high) / 2
        spent = sum(max(0.0, s - theta) for s in deviation)
        low, high = (theta, high) if spent > budget else (low, theta)
    sizes, spent = [0], 0.0
    for bits in (max(0.0, s - high) for s in deviation):
        over = spent + bits / 2 > layer.bits * len(sizes)
        if (over and len(sizes) < layer.subcodes) or sizes[-1] == layer.dims:
            if len(sizes) == layer.subcodes:
                break
            sizes.append(0)
        sizes[-1] += 1
        spent += bits
    return sizes + [0] * (layer.subcodes - len(sizes))


def deal(config: AutoencoderConfig, layers: tuple[Layer, ...], energy: list[float]) -> Tensor:
    """int16 [M, d]: channel k is component k; see the module."""
    table = torch.full((config.subcodes, config.subcode_dims), NONE, dtype=torch.int16)
    row, parts, following = 0, list[list[int]](), 0
    for number, layer in enumerate(layers):
        if number == 0:
            parts = []
            for size in water_filling(energy, layer):
                parts.append(list(range(following, following + size)))
                following += size
        else:
            parts = [p[i : i + layer.dims] for p in parts for i in range(0, len(p), layer.dims)]
            while len(parts) < layer.subcodes and following < min(config.channels, len(energy)):
                last = min(following + layer.dims, config.channels, len(energy))
                parts.append(list(range(following, last)))
                following = last
            parts = parts[: layer.subcodes]
        for m, part in enumerate(parts):
            table[row + m, : len(part)] = torch.tensor(part, dtype=torch.int16)
        row += layer.subcodes
    return table


@torch.no_grad()
def start_model(model: PQVAE, x: Tensor, layers: tuple[Layer, ...]) -> None:
    """Set deal and linear maps from the patches of [B,3,H,W] in [-1, 1]; the trunks add nothing."""
    config, encoder, decoder = model.config, model.encoder, model.decoder
    patches = encoder.patch(x).permute(0, 2, 3, 1).flatten(0, 2).double()  # [N, 3 f^2]
    mean = patches.mean(0)
    energy, axes = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    axes, energy = axes.flip(1).T.to(x.dtype), energy.flip(0)  # strongest first
    table = deal(config, layers, energy.tolist())
    model.quantizer.deal.copy_(table)
    for linear in (encoder.linear, decoder.linear):
        nn.init.zeros_(linear.weight)
        assert linear.bias is not None
        nn.init.zeros_(linear.bias)
    encoder.used.zero_()
    assert encoder.linear.bias is not None and decoder.linear.bias is not None
    for channels in table.tolist():  # the first sub-code of a channel decides its scale
        own = [c for c in channels if c != NONE and not encoder.used[c]]
        scale = float(energy[own].sum().sqrt().clamp_min(1e-4)) if own else 1.0
        for channel in own:
            encoder.used[channel] = 1.0
            encoder.linear.weight[channel, :, 0, 0] = axes[channel] / scale
            encoder.linear.bias[channel] = -(axes[channel] @ mean.to(x.dtype)) / scale
            decoder.linear.weight[:, channel, 0, 0] = axes[channel] * scale
    decoder.linear.bias.copy_(mean)


@torch.no_grad()
def draw_codebooks(model: PQVAE, rows: Tensor, generator: torch.Generator) -> None:
    """Codewords of every layer as random draws of what it is to code, of latents [N, C].

    A later layer's are of what random codewords of the first one leave; k-means follows
    (:meth:`pqmim.training.photographs.books.Books.settle`).
    """
    quantizer, config = model.quantizer, model.config
    for span in config.spans:
        vectors = quantizer.rows(rows)[:, span]  # [N, m, d]
        for m in range(span.start, span.stop):
            pick = torch.randint(len(rows), (config.codewords,), generator=generator)
            quantizer.codebook[m] = vectors[pick.to(rows.device), m - span.start]
        if span.stop < config.subcodes:
            codes = quantizer.nearest(vectors.transpose(0, 1).contiguous(), span.start).T
            words = quantizer.codewords_of(codes, span.start)
            rows = rows - quantizer.assemble(words, span.start)


@torch.no_grad()
def transplant(model: PQVAE, other: PQVAE) -> None:
    """Continue from the trunks of a model that has other sub-codes over the same widths.

    Both latents are nearly linear in the pixels; the least-squares map from one to the other goes
    into the 1x1 convolutions at the latent.

    Raises:
        ValueError: the trunks differ.
    """
    mine, its = (dataclasses.asdict(m.config) for m in (model, other))
    trunks = ("stem", "widths", "encoder_blocks", "decoder_blocks")
    apart = [k for k in trunks if mine[k] != its[k]]
    if apart:
        raise ValueError(f"cannot continue from a model with another {', '.join(apart)}")
    new, old = (m.encoder.linear.weight.flatten(1).double() for m in (model, other))
    to_old = torch.linalg.lstsq(new.T.cpu(), old.T.cpu(), driver="gelsd").solution.T.to(new.device)
    to_new = torch.linalg.lstsq(old.T.cpu(), new.T.cpu(), driver="gelsd").solution.T.to(new.device)
    for part, last in (("encoder", True), ("decoder", False)):
        trunk, source = (getattr(m, part).trunk for m in (model, other))
        state = source.state_dict()
        name = f"{len(trunk) - 1 if last else 0}."
        weight = state[name + "weight"].flatten(1).double()
        weight = to_new @ weight if last else weight @ to_old
        state[name + "weight"] = weight.float()[:, :, None, None]
        if last:
            state[name + "bias"] = (to_new @ state[name + "bias"].double()).float()
        trunk.load_state_dict(state)
