"""What to change so that a run of this kind goes faster: one sentence, from what was busy.

A run near its limit needs more of the resource that is the limit.  One that is not has a setting in
the way: too few shards for its replicas, too few threads that decode, cores that no thread uses, a
GPU that waits; the first of these that explains it is named, with a value to try.
"""

from __future__ import annotations

import math

from pipeline.driver.fleet import IN_FLIGHT
from pipeline.driver.limit import Verdict
from pipeline.plan import Plan, Resources

NEAR = 0.8  # of the limit; what a CPU run of minutes reaches, docs/log.md
SHORT_S = 30.0  # below, the first and the last shard are most of a run
IDLE, FULL = 0.2, 0.8  # shares of time: replicas without a shard; threads that are busy
SLOWED = 1.25  # times as long as alone
GPU_BATCH = 4 << 20  # pixels; what --batch-pixels says that a large GPU likes


def advise(
    verdict: Verdict, seconds: dict[str, float], cpu: dict[str, float], resources: Resources,
    plan: Plan, work_s: float,
) -> str:  # fmt: skip
    """The sentence.

    Args:
        verdict: of the run.
        seconds: by stage, and ``cpu``, processor seconds.
        resources: what it was given.
        plan: what it did.
        work_s: seconds that it took.
    """
    if work_s < SHORT_S:
        return f"{work_s:.0f} s are too short to say what would make a longer run faster"
    decoding = cpu.get("decode", 0.0) / (resources.decode_threads * verdict.replica_s)
    if verdict.busy["idle"] > IDLE:
        return (
            f"replicas had no shard for {verdict.busy['idle']:.0%} of their time: smaller shards, "
            "or fewer replicas, which take about as long and cost less"
        )
    alone = verdict.parts["encode"] + verdict.parts["code"]
    slowed = (seconds.get("encode", 0.0) + seconds.get("code", 0.0)) / max(alone, 1e-9)
    if verdict.on_cpu and verdict.share < NEAR and slowed > SLOWED:
        return (
            f"encoder and entropy model took {slowed:.1f} times as long as alone: look for other "
            "programs on these cores, or more threads than cores"
        )
    if verdict.on_cpu and verdict.busy["machine"] < FULL * NEAR:
        return _more_replicas(verdict, resources)
    if not verdict.on_cpu and decoding > FULL and verdict.busy["machine"] < FULL:
        return _more_threads(verdict, resources, decoding)
    if verdict.share >= NEAR:
        return _more_of(verdict, resources, plan)
    if not verdict.on_cpu:
        return _more_on_a_gpu(verdict, resources, plan)
    return (
        f"the cores were busy with this run for {verdict.busy['machine']:.0%} of the time: look "
        "for other programs on them, or waits for storage"
    )


def _more_replicas(verdict: Verdict, resources: Resources) -> str:
    """On cores that nobody uses."""
    used = max(verdict.busy["machine"], 0.01)
    if verdict.resource == "storage" and verdict.share >= NEAR:
        return _more_of_storage(resources)
    wanted = max(math.floor(resources.replicas * 0.9 / used), resources.replicas + 1)
    return (
        f"--replicas {wanted}: those of this run kept {used:.0%} of the cores of their machines "
        "busy"
    )


def _more_threads(verdict: Verdict, resources: Resources, decoding: float) -> str:
    """That decode images, before a GPU that waits for them: until it or all cores are busy."""
    times = min(decoding / max(verdict.busy["device"], 0.01), FULL / verdict.busy["machine"])
    return (
        f"--decode-threads {math.ceil(resources.decode_threads * max(times, 1.01))}: those of a "
        f"replica were busy for {decoding:.0%} of the time, the GPU for "
        f"{verdict.busy['device']:.0%}, all cores for {verdict.busy['machine']:.0%}"
    )


def _more_of(verdict: Verdict, resources: Resources, plan: Plan) -> str:
    """Of the resource that is the limit."""
    if verdict.resource == "storage":
        return _more_of_storage(resources)
    where = "more cores, or a GPU" if verdict.on_cpu else "more GPUs"
    if verdict.resource == "cores" and not verdict.on_cpu:
        return "machines with more cores for each GPU: they did nothing but this, the GPU waited"
    if verdict.bound == "code":
        needs = verdict.parts["code"] / sum(verdict.parts.values())
        way = "--price 0 (larger files)" if plan.price else "--store codes (larger files)"
        return (
            f"{where}; or, in a new archive, {way}: {needs:.0%} of the work are for smaller files"
        )
    if verdict.bound == "encode" and not verdict.on_cpu and plan.batch_pixels < GPU_BATCH:
        return f"{where}; or, in a new archive, --batch-pixels {GPU_BATCH}"
    return f"{where}: nothing of this run waits for anything else"


def _more_of_storage(resources: Resources) -> str:
    """Each replica reads two shards at a time."""
    return (
        f"more --replicas, which read more than {IN_FLIGHT * resources.replicas} shards at a time; "
        "if that changes nothing, run nearer to the storage"
    )


def _more_on_a_gpu(verdict: Verdict, resources: Resources, plan: Plan) -> str:
    """One that waits."""
    share = (resources.gpus_per_replica or 1.0) / 2
    return (
        f"--gpus-per-replica {share:g} with twice the --replicas: the GPU computed for "
        f"{verdict.busy['device']:.0%} of the time"
        + ("" if plan.batch_pixels >= GPU_BATCH else "; larger --batch-pixels in a new archive")
    )
