"""Where training begins: stage 1 with the trunks of another model, stage 2 with what the codebooks
already say about the codes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pqmim.autoencoder.network import PQVAE
from pqmim.training.network import Prior

SPREAD = 0.25  # of a sub-code's embedding, as a random one has
OWN = 0.05  # of what tells a codeword from its neighbours
HEAD = 0.01


@torch.no_grad()
def start_from_codebook(prior: Prior, codebook: Tensor, lengths: Tensor, seed: int) -> None:
    """Set embeddings and heads from codebooks [M, K, d] and static code lengths [M, K] in bits.

    A codeword's embedding starts at a random projection of its vector, shared by its codebook, so
    that codewords which look alike are alike to the model before it has seen them; its head row
    does the same, and the biases are the static code lengths.  Nothing of this stays tied.  From
    random embeddings every one of the M * K rows has to be found from its own few occurrences.
    """
    config, generator = prior.config, torch.Generator().manual_seed(seed)
    subcodes, codewords, dims = codebook.shape

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(codebook.device)

    share = torch.exp2(-lengths).unsqueeze(-1)
    centred = codebook - (share * codebook).sum(1, keepdim=True)
    power = (share * centred.square()).sum((1, 2)).clamp_min(1e-12)
    unit = centred / power.sqrt()[:, None, None]
    codes = OWN * noise(subcodes, codewords + 1, config.dims)
    codes[:, :codewords] += SPREAD * unit @ noise(subcodes, dims, config.dims)
    prior.codes.copy_(codes.flatten(0, 1))
    heads = unit @ noise(subcodes, dims, config.dims) + noise(subcodes, codewords, config.dims)
    prior.head.weight.copy_(HEAD * heads.flatten(0, 1))
    prior.head.bias.copy_(-lengths.flatten())


@torch.no_grad()
def transplant(model: PQVAE, other: PQVAE) -> None:
    """Continue from the trunks of a model that has other sub-codes over the same widths.

    Both latents are nearly linear in the pixels; the least-squares map from one to the other goes
    into the 1x1 convolutions at the latent.

    Raises:
        ValueError: the trunks differ.
    """
    mine, its = (dataclasses.asdict(m.config) for m in (model, other))
    apart = [k for k in mine if mine[k] != its[k] and not k.startswith("subcode")]
    if apart:
        raise ValueError(f"cannot continue from a model with another {', '.join(apart)}")
    new, old = (m.encoder.linear.weight.flatten(1).double() for m in (model, other))
    to_old = torch.linalg.lstsq(new.T, old.T, driver="gelsd").solution.T  # old = to_old @ new
    to_new = torch.linalg.lstsq(old.T, new.T, driver="gelsd").solution.T
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
