"""Ray Data as its documentation has it: read_webdataset, map_batches twice, write_parquet."""

from __future__ import annotations

import os

import numpy as np
import ray
import ray.data

from benchmarks.peers import shared


def decode(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Files to pixels."""
    pixels = np.stack([shared.decoded(data) for data in batch["jpg"]])
    return {"key": batch["__key__"], "pixels": pixels}


class Encode:
    """One actor."""

    def __init__(self, threads: int) -> None:
        self.model = shared.Model(threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        codes = self.model.codes(batch["pixels"])
        return {"key": batch["key"], "codes": np.array(codes, dtype=object)}


def main() -> None:
    """Run it; the CPUs of an actor are chosen so that a core is left for decoding."""
    args = shared.arguments(__doc__)
    cores = len(os.sched_getaffinity(0))
    ray.init(
        num_cpus=cores, include_dashboard=False, _node_ip_address="127.0.0.2",
        object_store_memory=1 << 30, log_to_driver=False,
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    found = ray.data.read_webdataset(
        args.shards, decoder=None, suffixes=["jpg"], include_paths=True
    )
    found = found.map_batches(decode, batch_size=args.batch, num_cpus=cores / (2 * cores))
    found = found.map_batches(
        Encode, fn_constructor_args=(args.threads,), batch_size=args.batch,
        num_cpus=cores / (2 * args.models),
        compute=ray.data.ActorPoolStrategy(size=args.models, max_tasks_in_flight_per_actor=2),
    )  # fmt: skip
    found.write_parquet(args.output)


if __name__ == "__main__":
    main()
