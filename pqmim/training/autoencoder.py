"""Stage 1: train the PQ-VAE for mean squared error, all qualities at once.

    pqmim train autoencoder --input 'DIR/*.tar' --output RUN --minutes 100

Nested sub-codes: half of the crops keep all M sub-codes, the others a uniform number.  Each crop's
error is divided by the usual error at its quality, so every rate gains the same share (the loss is
a stand-in for mean PSNR) and the coarse ones do not drown the fine ones.

Each crop also draws a price of a bit (``PRICES``), and its codes are chosen by distance plus price
times code length: the codebooks become what an entropy coder wants, and one model serves every
point of the rate-distortion curve (docs/log.md: 1.5 dB at equal rate before any training).

The learning rate follows the share of the time budget that is used, not a step count: the budget is
what is known in advance.  ``RUN/checkpoint.pt`` resumes exactly where it was written (weights,
moving averages, optimiser, codebooks, random state, time used).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pqmim.autoencoder.config import AutoencoderConfig
from pqmim.autoencoder.network import PQVAE, channels_last, start_linear, to_float
from pqmim.meter import Meter
from pqmim.metrics import psnr
from pqmim.training import crops
from pqmim.training.starts import transplant

START_CROPS = 512  # for the principal components and the k-means codebooks
LOG_EVERY, SAVE_EVERY = 50, 500  # steps
# Squared error in units of (level / 127.5) ** 2, summed over a patch, that saving a bit is worth;
# and how often a crop draws it.
PRICES, SHARES = (0.0, 0.015, 0.04, 0.1, 0.25), (0.1, 0.225, 0.225, 0.225, 0.225)
START_PRICE = 0.025


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the images."""

    model: AutoencoderConfig = dataclasses.field(default_factory=AutoencoderConfig)
    minutes: float = 85.0
    crop: int = 160
    batch: int = 10
    peak_lr: float = 2e-4
    encoder_lr: float = 0.5  # relative: the straight-through gradient drives the latents apart
    linear_lr: float = 0.02  # of the linear maps, relative: they see 768 correlated pixels
    warmup: float = 0.01  # share of the budget
    commitment: float = 1.0  # cancels the bias of the straight-through gradient
    full_share: float = 0.6  # of the crops keep all M sub-codes
    subcode_bits: float = 6.0  # of water-filling at the start
    decoder_only: bool = False  # the codes stay as they are
    weight_average: float = 0.999
    seed: int = 0


def draw_quality(
    batch: int, subcodes: int, full_share: float, generator: torch.Generator
) -> Tensor:
    """How many sub-codes each crop keeps, int64 [batch] in 1..M."""
    some = torch.randint(1, subcodes + 1, (batch,), generator=generator)
    full = torch.rand(batch, generator=generator) < full_share
    return torch.where(full, subcodes, some)


def pixel_commitment(model: PQVAE, latent: Tensor, chosen: Tensor) -> Tensor:
    """Squared quantisation error as the linear decoder shows it in the pixels, [B].

    In a linear codec the straight-through gradient D'(Dq - x) plus that of this term, D'D(z - q),
    is the gradient of the error without quantisation, D'(Dz - x): free of the bias that otherwise
    drives latents and codewords apart.  An error measured in the latent does not weigh what each
    sub-code costs; with it PSNR fell by 1.5 dB in 600 steps (docs/log.md).
    """
    shown = nn.functional.conv2d(latent - chosen, model.decoder.linear.weight.detach())
    return shown.square().mean(dim=(1, 2, 3))


def learning_rate(recipe: Recipe, used: float) -> float:
    """Linear warm-up, then a cosine to 1 % of the peak; ``used`` is the share of the budget."""
    if used < recipe.warmup:
        return recipe.peak_lr * max(used / recipe.warmup, 0.01)
    done = min(1.0, (used - recipe.warmup) / (1 - recipe.warmup))
    return recipe.peak_lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Trainer:
    """The state of one run: what a checkpoint holds."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.model = channels_last(PQVAE(recipe.model).to(device))
        self.average = channels_last(PQVAE(recipe.model).to(device))
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = make_optimizer(self.model, recipe)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.usual_error = torch.full((len(PRICES), recipe.model.subcodes + 1), 0.03, device=device)
        self.step, self.seconds = 0, 0.0

    @torch.no_grad()
    def start(self, images: list[Tensor], other: PQVAE | None = None) -> None:
        """Begin as a transform codec, with the trunks of another model if there is one."""
        stream = crops.batches(images, 128, START_CROPS, self.recipe.seed, -1)
        pixels = to_float(next(stream)).to(self.device)
        start_linear(self.model, pixels, self.recipe.subcode_bits)
        if other is not None:
            transplant(self.model, other)
        self.model.refresh_gain()
        latent = torch.cat([self.model.encoder(part) for part in pixels.split(64)])
        self.model.quantizer.start(latent, START_PRICE)
        self.average.load_state_dict(self.model.state_dict())

    def train_step(self, pixels: Tensor) -> dict[str, float]:
        """One update on uint8 [B,3,s,s]."""
        recipe, model = self.recipe, self.model
        x = to_float(pixels.to(self.device))
        quality = draw_quality(len(x), recipe.model.subcodes, recipe.full_share, self.generator)
        level = torch.multinomial(
            torch.tensor(SHARES), len(x), replacement=True, generator=self.generator
        )
        quality, level = quality.to(self.device), level.to(self.device)
        price = torch.tensor(PRICES, device=self.device)[level]
        model.refresh_gain()
        with self._autocast(), torch.set_grad_enabled(not recipe.decoder_only):
            latent = model.encoder(x).float()
        given, chosen, codes = model.quantizer(latent, quality, price)
        with self._autocast():
            y = model.decoder(given)
        error = (y.float() - x).square().mean(dim=(1, 2, 3))
        loss = (error / self.usual_error[level, quality]).mean()
        if not recipe.decoder_only:
            drift = pixel_commitment(model, latent, chosen) / self.usual_error[level, -1]
            loss = loss + recipe.commitment * drift.mean()
        lr = learning_rate(recipe, self.seconds / (60 * recipe.minutes))
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        restarted = 0 if recipe.decoder_only else model.quantizer.follow(latent.detach(), codes)
        self._average(error.detach(), level, quality)
        self.step += 1
        return {
            "loss": float(loss.detach()), "mse": float(error.detach().mean()), "norm": float(norm),
            "restarted": restarted, "lr": lr,
        }  # fmt: skip

    def _autocast(self) -> torch.autocast:
        """bf16 on a GPU; on the CPU it is slower than float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    @torch.no_grad()
    def _average(self, error: Tensor, level: Tensor, quality: Tensor) -> None:
        decay = min(self.recipe.weight_average, (1 + self.step) / (10 + self.step))
        for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        self.average.quantizer.codebook.copy_(self.model.quantizer.codebook)
        self.average.quantizer.count.copy_(self.model.quantizer.count)
        for e, i, q in zip(error, level, quality, strict=True):
            self.usual_error[i, q] += 0.05 * (e - self.usual_error[i, q])

    def save(self, path: Path) -> None:
        """Write the whole state; the old file stays until the new one is complete."""
        quantizer = self.model.quantizer
        state = {
            "recipe": dataclasses.asdict(self.recipe), "step": self.step, "seconds": self.seconds,
            "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "usual_error": self.usual_error,
            "count": quantizer.count, "total": quantizer.total,
            "generator": self.generator.get_state(), "torch": torch.get_rng_state(),
        }  # fmt: skip
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Continue from :meth:`save` output."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.usual_error.copy_(state["usual_error"])
        self.model.quantizer.count.copy_(state["count"])
        self.model.quantizer.total.copy_(state["total"])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["torch"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]


def make_optimizer(model: PQVAE, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; the encoder and the linear maps have lower rates."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        scale = recipe.encoder_lr if name.startswith("encoder.") else 1.0
        scale = recipe.linear_lr if ".linear." in name else scale
        groups.setdefault(scale, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": list_, "lr_scale": scale} for scale, list_ in groups.items()],
        lr=recipe.peak_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True,
    )  # fmt: skip


@torch.no_grad()
def validate(model: PQVAE, pixels: Tensor) -> dict[str, float]:
    """On held-out crops: PSNR in dB and static bpp at every price, all sub-codes; and without a
    price, of a quarter and a half of them."""
    report: dict[str, float] = {}
    model.refresh_gain()
    every, lengths = model.config.subcodes, model.quantizer.lengths()
    points = [(price, every) for price in PRICES] + [(0.0, every // 4), (0.0, every // 2)]
    for price, quality in points:
        total = bits = 0.0
        for part in pixels.split(8):
            vectors = model.quantizer.vectors(model.encoder(to_float(part)))[:quality]
            codes = model.quantizer.nearest(vectors, vectors.new_full(vectors.shape[1:2], price))
            bits += float(lengths[:quality].gather(1, codes).sum())
            grid = [len(part), *(n // model.config.stride for n in part.shape[2:]), quality]
            out = model.decode(codes.T.reshape(grid)).cpu().numpy()
            total += sum(psnr(a, b) for a, b in zip(out, part.cpu().numpy(), strict=True))
        name = f"{price:g}" + ("" if quality == every else f"_m{quality}")
        report[f"psnr_{name}"] = total / len(pixels)
        report[f"bpp_{name}"] = bits / pixels[:, 0].numel()
    return report


def train(
    recipe: Recipe, shards: list[Path], out: Path, device: torch.device,
    other: PQVAE | None = None, meter: Meter | None = None,
) -> PQVAE:  # fmt: skip
    """Run the recipe to the end of its budget and give the averaged model; see the module.

    A new run begins with the trunks of ``other``, if it is given.  The last shard, by name, is held
    out for the PSNR in the log.
    """
    out.mkdir(parents=True, exist_ok=True)
    shards = sorted(shards)
    images = crops.load_images(shards[:-1])
    held_out = crops.center_crops(crops.load_images(shards[-1:]), 256, 32).to(device)
    trainer, checkpoint = Trainer(recipe, device), out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    else:
        trainer.start(images, other)
    stream = crops.batches(images, recipe.crop, recipe.batch, recipe.seed, trainer.step)
    with open(out / "log.jsonl", "a") as log:
        if trainer.step == 0:
            first = {"recipe": dataclasses.asdict(recipe), "images": len(images)}
            print(json.dumps(first), file=log)
        while trainer.seconds < 60 * recipe.minutes:
            begin = time.perf_counter()
            report = trainer.train_step(next(stream))
            trainer.seconds += time.perf_counter() - begin
            if meter is not None:
                meter.show_run(trainer.seconds, trainer.step, f"loss {report['loss']:.3f}")
            if trainer.step % LOG_EVERY == 0:
                report["minutes"] = trainer.seconds / 60
                report["images_per_s"] = recipe.batch / (time.perf_counter() - begin)
                if trainer.step % SAVE_EVERY == 0:
                    report |= validate(trainer.average, held_out)
                    trainer.save(checkpoint)
                line: dict[str, object] = {k: round(v, 5) for k, v in report.items()}
                line |= {"step": trainer.step, "usage": trainer.model.quantizer.usage()}
                print(json.dumps(line), file=log, flush=True)
        trainer.save(checkpoint)
        last = {"step": trainer.step} | validate(trainer.average, held_out)
        print(json.dumps(last), file=log)
    return trainer.average
