"""What runs the replicas: processes of this machine, or actors of a Ray cluster.

Without a cluster and with one replica, or with ``--local``, they are processes of this machine, up
in two seconds; several replicas, and a cluster that RAY_ADDRESS names, are Ray's.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.common import UsageError
from pipeline.driver.fleet import Pool
from pipeline.driver.report import Progress, Watcher
from pipeline.plan import Plan, Resources
from pipeline.store.storage import Store

if TYPE_CHECKING:
    from pipeline.work.host import Work

log = logging.getLogger(__name__)
LOCAL = "processes of this machine"


@contextmanager
def open_pool(
    store: Store, plan: Plan, resources: Resources, work: Work
) -> Iterator[tuple[Pool, Resources]]:
    """The pool that the resources ask for, and the resources with their device found; what runs
    in the pool ends with the block.

    Raises:
        UsageError: there is no such device, or no Ray.
    """
    if resources.local:
        from pipeline.driver.local_pool import LocalPool

        resources = replace(resources, device=local_device(resources.device))
        log.info("%d replicas on %s: %s", resources.replicas, resources.device, LOCAL)
        pool: Any = LocalPool(store, plan, resources, work)
    else:
        resources = connect(resources)
        from pipeline.driver.ray_pool import RayPool

        pool = RayPool(store, plan, resources, work)
    try:
        yield pool, resources
    finally:
        pool.close()


def exporters(resources: Resources, progress: Progress) -> list[Watcher]:
    """Who counts a run for Prometheus: nobody where its replicas are not Ray's."""
    if resources.local:
        return []
    import ray
    from ray.util import metrics

    from pipeline.observe.exporter import Exporter

    return [Exporter(metrics, progress)] if ray.is_initialized() else []


def local_device(device: str) -> str:
    """``auto`` is a GPU of this machine if there is one.

    Raises:
        UsageError: a GPU is asked for, and this machine has none.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"--device {device}: PyTorch sees no GPU on this machine; give --device cpu (slow: "
            "tens of images a second and core), or install a PyTorch with CUDA"
        )
    return device


def connect(resources: Resources) -> Resources:
    """Join the Ray cluster that RAY_ADDRESS names, or start one on this machine; the resources
    with their device found.  ``ray job submit`` sets RAY_ADDRESS.

    Raises:
        UsageError: no Ray, no such cluster, or it has no GPU.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"Ray is not here ({error}): pip install ray, or give --local") from error

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        _join_or_start(os.environ.get("RAY_ADDRESS") or "local")
    gpus, device = ray.cluster_resources().get("GPU"), resources.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
        log.info("--device auto: the cluster has %s, so %s", "GPUs" if gpus else "no GPU", device)
    if device.startswith("cuda") and not gpus:
        raise UsageError(
            "this Ray cluster has no GPU; give --device cpu to encode on the CPU (slow: tens of "
            "images a second and core), or add GPU nodes"
        )
    share = resources.gpus_per_replica
    if share is None:
        share = 1.0 if device.startswith("cuda") else 0.0
    return replace(resources, device=device, gpus_per_replica=share)


def _join_or_start(address: str) -> None:
    """``local`` starts a Ray of our own, on loopback, also where another one runs already."""
    import ray

    options: dict[str, Any] = {}
    if address == "local":
        log.info("starting Ray on this machine: some ten seconds")
        options["include_dashboard"] = False
        if sys.platform == "linux":  # elsewhere only 127.0.0.1 exists, and Ray replaces that one
            options["_node_ip_address"] = "127.0.0.2"
    else:
        log.info("joining the Ray cluster at %s", address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # What replicas log stays in Ray's own files (``ray logs``, or below /tmp/ray/session_latest
        # /logs); what a person has to know comes back with the failure.
        ray.init(address=address, configure_logging=False, log_to_driver=False, **options)
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"RAY_ADDRESS {address}: {error}") from error
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has replaced it by sys.exit(15)
