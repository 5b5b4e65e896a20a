"""The series that rules and dashboard may ask for, with their labels and what these can be."""

from __future__ import annotations

from pipeline.plan import Status

RUN = {"run": "any"}
_STATUS = {"status": {status.value for status in Status}}
LABELS: dict[str, dict[str, object]] = {
    "ray_pqmim_images_total": RUN | _STATUS,
    "ray_pqmim_source_bytes_total": RUN,
    "ray_pqmim_table_bytes_total": RUN,
    "ray_pqmim_code_bytes_total": RUN,
    "ray_pqmim_pixels_total": RUN,
    "ray_pqmim_stage_seconds_total": RUN | {"stage": {"read", "decode", "encode", "code", "write"}},
    "ray_pqmim_shards_total": RUN | {"outcome": {"done", "damaged", "quarantined"}},
    "ray_pqmim_shard_retries_total": RUN | {"kind": {"transient", "error", "lost"}},
    "ray_pqmim_storage_retries_total": RUN,
    "ray_pqmim_second_copies_total": RUN,
    "ray_pqmim_replicas_lost_total": RUN | {"reason": {"died", "hung", "node"}},
    "ray_pqmim_shards_left": RUN,
    "ray_pqmim_bytes_left": RUN,
    "ray_pqmim_replicas": RUN | {"state": {"wanted", "coming", "up"}},
    "ray_pqmim_in_flight": RUN,
    "ray_pqmim_oldest_flight_seconds": RUN,
    "ray_pqmim_of_limit": RUN,
    "ray_pqmim_starved_share": RUN,
    "ray_pqmim_shard_seconds_bucket": RUN | {"le": "any"},
    # Ray's own, of every node
    "ray_node_mem_used": {"ip": "any", "RayNodeType": {"head", "worker"}},
    "ray_node_mem_total": {"ip": "any", "RayNodeType": {"head", "worker"}},
    "ray_node_gpus_utilization": {"ip": "any", "RayNodeType": {"head", "worker"}},
}
