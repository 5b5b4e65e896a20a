"""Stage 1: train the PQ-VAE for mean squared error, all qualities at once.

    pqmim train autoencoder --shards 'DIR/*.tar' --out RUN --minutes 100

Nested sub-codes: half of the crops keep all M sub-codes, the others a uniform number.  Each crop's
error is divided by the usual error at its quality, so every rate gains the same share (the loss is
a stand-in for mean PSNR) and the coarse ones do not drown the fine ones.

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

from pqmim.autoencoder import PQVAE, channels_last, start_linear, to_float
from pqmim.config import AutoencoderConfig
from pqmim.metrics import psnr
from pqmim.training import crops

START_CROPS = 512  # for the principal components and the k-means codebooks
LOG_EVERY, SAVE_EVERY = 50, 500  # steps


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
    full_share: float = 0.25  # of the crops keep all M sub-codes
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
    """Squared quantisation error as the linear decoder shows it in the pixels, a scalar.

    In a linear codec the straight-through gradient D'(Dq - x) plus that of this term, D'D(z - q),
    is the gradient of the error without quantisation, D'(Dz - x): free of the bias that otherwise
    drives latents and codewords apart.  An error measured in the latent does not weigh what each
    sub-code costs; with it PSNR fell by 1.5 dB in 600 steps (docs/log.md).
    """
    shown = nn.functional.conv2d(latent - chosen, model.decoder.linear.weight.detach())
    return shown.square().mean()


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
        self.usual_error = torch.full((recipe.model.subcodes + 1,), 0.1, device=device)
        self.step, self.seconds = 0, 0.0

    @torch.no_grad()
    def start(self, images: list[Tensor]) -> None:
        """Begin as a transform codec: principal components and k-means codebooks."""
        stream = crops.batches(images, 128, START_CROPS, self.recipe.seed, -1)
        pixels = to_float(next(stream)).to(self.device)
        start_linear(self.model, pixels)
        latent = torch.cat([self.model.encoder(part) for part in pixels.split(64)])
        self.model.quantizer.start(latent)
        self.average.load_state_dict(self.model.state_dict())

    def train_step(self, pixels: Tensor) -> dict[str, float]:
        """One update on uint8 [B,3,s,s]."""
        recipe, model = self.recipe, self.model
        x = to_float(pixels.to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            latent = model.encoder(x).float()
        quality = draw_quality(len(x), recipe.model.subcodes, recipe.full_share, self.generator)
        quality = quality.to(self.device)
        given, chosen, codes = model.quantizer(latent, quality)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            y = model.decoder(given)
        error = (y.float() - x).square().mean(dim=(1, 2, 3))
        commitment = pixel_commitment(model, latent, chosen) / self.usual_error[-1]
        loss = (error / self.usual_error[quality]).mean() + recipe.commitment * commitment
        lr = learning_rate(recipe, self.seconds / (60 * recipe.minutes))
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        restarted = model.quantizer.follow(latent.detach(), codes)
        self._average(error.detach(), quality)
        self.step += 1
        return {
            "loss": float(loss.detach()), "mse": float(error.detach().mean()), "norm": float(norm),
            "commit": float(commitment.detach()), "restarted": restarted, "lr": lr,
        }  # fmt: skip

    @torch.no_grad()
    def _average(self, error: Tensor, quality: Tensor) -> None:
        decay = min(self.recipe.weight_average, (1 + self.step) / (10 + self.step))
        for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        self.average.quantizer.codebook.copy_(self.model.quantizer.codebook)
        for e, q in zip(error, quality, strict=True):
            self.usual_error[q] += 0.02 * (e - self.usual_error[q])

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


def validate(model: PQVAE, pixels: Tensor) -> dict[str, float]:
    """PSNR in dB of held-out crops with a quarter, half and all of the sub-codes."""
    report = {}
    for quality in sorted({max(1, model.config.subcodes * q // 4) for q in (1, 2, 4)}):
        out = torch.cat([model.decode(model.encode(p, quality)) for p in pixels.split(8)])
        pairs = zip(out.cpu().numpy(), pixels.cpu().numpy(), strict=True)
        report[f"psnr_m{quality}"] = sum(psnr(a, b) for a, b in pairs) / len(pixels)
    return report


def train(recipe: Recipe, shards: list[Path], out: Path, device: torch.device) -> PQVAE:
    """Run the recipe to the end of its budget and give the averaged model; see the module.

    The last shard, by name, is held out for the PSNR in the log.
    """
    out.mkdir(parents=True, exist_ok=True)
    shards = sorted(shards)
    images = crops.load_images(shards[:-1])
    held_out = crops.center_crops(crops.load_images(shards[-1:]), 256, 32).to(device)
    trainer, checkpoint = Trainer(recipe, device), out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    else:
        trainer.start(images)
    stream = crops.batches(images, recipe.crop, recipe.batch, recipe.seed, trainer.step)
    with open(out / "log.jsonl", "a") as log:
        if trainer.step == 0:
            print(
                json.dumps({"recipe": dataclasses.asdict(recipe), "images": len(images)}), file=log
            )
        while trainer.seconds < 60 * recipe.minutes:
            begin = time.perf_counter()
            report = trainer.train_step(next(stream))
            trainer.seconds += time.perf_counter() - begin
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
