"""Where stage 2 begins: with what the codebooks already say about the codes."""

from __future__ import annotations

import torch
from torch import Tensor

from pqmim.training.network import Prior

SPREAD = 0.25  # of a sub-code's embedding, as a random one has
OWN = 0.05  # of what tells a codeword from its neighbours
HEAD = 0.01
RARE = 0.02  # uses added to every codeword, so that none has an infinite length


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


def code_lengths(uses: Tensor) -> Tensor:
    """Uses [..., K] -> ideal code lengths in bits, none of them infinite."""
    total = uses.sum(-1, keepdim=True)
    smooth = (uses + RARE * total / uses.shape[-1]).clamp_min(1e-9)
    return -(smooth / smooth.sum(-1, keepdim=True)).log2()
