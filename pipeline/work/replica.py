"""A replica: one codec on its device, the threads that feed it, and the stopwatch of its stages.

The device computes one batch at a time, whichever of the shards in flight it belongs to.  Loading
and moving batches is the callers' affair: encoder.py, decoder.py and transcoder.py.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pipeline.archive import table
from pipeline.plan import Coding, Plan
from pipeline.signals import Alone, Counts
from pqmim.codec import Codec

STAGES = ("read", "decode", "encode", "measure", "code", "write")
MAX_BATCH = 64  # images
PENDING_BATCHES = 8  # batches' worth of pixels that may wait in unfilled buckets


class Clock:
    """Of one shard under way: seconds by stage, added up over threads, and how far it is."""

    def __init__(self) -> None:
        self.seconds, self.cpu = dict.fromkeys(STAGES, 0.0), dict.fromkeys(STAGES, 0.0)
        self.counts = Counts()
        self._lock = threading.Lock()

    def advance(self, to: int = 0, **more: int) -> None:
        """Add to the counts; ``to``: bytes of the source that are done with."""
        old = self.counts
        added = {name: getattr(old, name) + count for name, count in more.items()}
        self.counts = replace(old, source_bytes=max(old.source_bytes, to), **added)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block."""
        begin, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[name] += time.perf_counter() - begin
                self.cpu[name] += time.thread_time() - cpu


class Replica:
    """A codec on its device and the decode threads that feed it; lives as long as its process."""

    def __init__(self, codec: Codec, decode_threads: int = 2, queue_bytes: int = 256 << 20) -> None:
        self.codec, self.queue_bytes, self.decode_threads = codec, queue_bytes, decode_threads
        self.pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        self._device_lock = threading.Lock()
        self.clocks = dict[str, Clock]()  # of the shards in flight, by shard id

    def encode(self, pixels: Tensor, quality: int, clock: Clock) -> np.ndarray:
        """uint8 [B,3,H,W] -> codes [B,h,w,quality]; one batch at a time on the device."""
        with self._device_lock, clock.stage("encode"):
            return _halved(lambda part: self.codec.encode(part, quality), pixels).cpu().numpy()

    def search(
        self, pixels: Tensor, count: int, coding: Coding, clock: Clock
    ) -> tuple[np.ndarray, list[bytes]]:
        """uint8 [B,3,H,W] -> codes [count,h,w,m] and bitstreams of the first ``count`` images."""
        with self._device_lock:
            with clock.stage("encode"):
                latent = _halved(self.codec.latent, pixels)
            with clock.stage("code"):
                codes, streams = self.codec.search_latent(
                    latent[:count], coding.price, coding.stages, coding.quality
                )
        return codes.numpy(), streams

    def entropy_encode(self, codes: np.ndarray, coding: Coding, clock: Clock) -> list[bytes]:
        """Codes uint8 [B,h,w,m] -> one bitstream an image."""
        with self._device_lock, clock.stage("code"):
            return self.codec.entropy_encode(torch.from_numpy(codes), coding.stages)

    def entropy_decode(
        self, payloads: Sequence[bytes], h: int, w: int, coding: Coding
    ) -> np.ndarray:
        """Bitstreams of one shape -> codes uint8 [B,h,w,m]; wrong ones give wrong codes.

        Raises:
            pqmim.prior.range_coder.PayloadError: one is cut off, or no encoder wrote it.
        """
        with self._device_lock:
            return self.codec.entropy_decode(payloads, h, w, coding.quality, coding.stages).numpy()

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes [B,h,w,m] -> uint8 [B,3,height,width] on the CPU."""
        with self._device_lock:
            return self.codec.decode(codes, height, width).cpu()

    def calibrate(self, plan: Plan, seconds: float = 0.5) -> Alone:
        """What encoder and entropy model take alone, on batches of the plan's size.

        Warms up what costs a second at its first use: kernels, the entropy model's own test, and
        the table writer.
        """
        side = plan.crop or plan.resize or 512
        batch = batch_size(plan.batch_pixels, side, side)
        pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        self._try(pixels[:1], plan, Clock())
        table.warm_up(plan)
        clock, count = Clock(), 0
        while sum(clock.seconds.values()) < seconds:
            self._try(pixels, plan, clock)
            count += 1
        size = count * batch * side * side / 1e6
        on_cpu = self.codec.device.type == "cpu"
        threads = self.decode_threads + 1 + (torch.get_num_threads() if on_cpu else 1)
        return Alone(
            clock.seconds["encode"] / size, clock.seconds["code"] / size, os.cpu_count() or 1,
            threads, on_cpu,
        )  # fmt: skip

    def _try(self, pixels: Tensor, plan: Plan, clock: Clock) -> None:
        """What is done with a batch of pictures, without them."""
        if plan.price > 0:
            self.search(pixels, len(pixels), plan.coding, clock)
            return
        codes = self.encode(pixels, plan.quality, clock)
        if plan.stores_bitstream:
            self.entropy_encode(codes, plan.coding, clock)


def _halved(encode: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Encode; out of memory halves the batch once, and then it is an error."""
    try:
        return encode(pixels)
    except torch.OutOfMemoryError:
        if len(pixels) == 1:
            raise
        torch.cuda.empty_cache()
        return torch.cat([encode(half) for half in pixels.chunk(2)])


def batch_size(batch_pixels: int, height: int, width: int) -> int:
    """Images of one shape in a full batch."""
    return max(1, min(MAX_BATCH, batch_pixels // (height * width)))


def resident_bytes() -> int:
    """Memory of this process now (Linux), or its peak where there is no /proc."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process has had; macOS counts it in bytes, others in KiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
