"""The series that rules and dashboard may ask for, with their labels and what these can be."""

from __future__ import annotations

from pipeline.observe import metrics

LABELS: dict[str, dict[str, object]] = {
    metric.series: {"run": "any"}
    | ({metric.label: set(metric.values)} if metric.label else {})
    | ({"le": "any"} if metric.kind == "histogram" else {})
    for metric in metrics.ALL
} | {  # Ray's own, of every node
    name: {"ip": "any", "RayNodeType": {"head", "worker"}}
    for name in ("ray_node_mem_used", "ray_node_mem_total", "ray_node_gpus_utilization")
}
