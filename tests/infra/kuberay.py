"""What is wrong with a manifest for KubeRay: its schema, Kubernetes' own, and what neither says.

``problems`` takes the text of a manifest.  The rules that KubeRay checks in its operator and not in
its schema are here in our own words (its validation.go, v1.7.0), and so are names whose meaning
lies outside Kubernetes: labels of clouds, ports, environment variables, the flags of ``ray start``.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import lzma
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from jobs import encode
from tests.infra import tools

SCHEMAS = Path(__file__).parent / "schemas"
IMAGE = "REGISTRY/pqmim:VERSION"
GPU = "nvidia.com/gpu"
ACCOUNT = "pqmim"  # the service account of kuberay/serviceaccount.yaml
ON_DEMAND = {"karpenter.sh/capacity-type": "on-demand"}
SPOT = {"karpenter.sh/capacity-type": "spot"}
PORTS = {  # names that KubeRay gives to Ray's ports, constant.go
    "gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080,
    "as-metrics": 44217, "dash-metrics": 44227,
}  # fmt: skip
METADATA = {"name", "generateName", "annotations", "labels"}
Node = dict[str, Any]


def problems(text: str) -> list[str]:
    """What is wrong with the manifest of a RayCluster or a RayJob."""
    manifest = yaml.safe_load(text)
    kind = manifest["kind"]
    found = schema_problems(manifest, kind)
    if found:
        return found
    found += metadata_problems(manifest["metadata"])
    if kind == "RayJob":
        found += job_problems(manifest["spec"])
        return found + cluster_problems(manifest["spec"]["rayClusterSpec"])
    return found + cluster_problems(manifest["spec"])


def schema_problems(manifest: Node, kind: str) -> list[str]:
    """Against the strict schema of the custom resource."""
    errors = validator_of(kind).iter_errors(manifest)
    found = [f"{error.json_path}: {error.message[:200]}" for error in errors]
    if manifest["apiVersion"] != "ray.io/v1":
        found.append(f"apiVersion {manifest['apiVersion']}")
    return found


@functools.cache
def validator_of(kind: str) -> jsonschema.Draft202012Validator:
    """Of a custom resource, from its packed schema."""
    packed = SCHEMAS / f"{kind.lower()}-v1.json.xz"
    return jsonschema.Draft202012Validator(json.loads(lzma.decompress(packed.read_bytes())))


def metadata_problems(metadata: Node) -> list[str]:
    """A name that KubeRay can lengthen: DNS-1035, at most 47 characters with Kubernetes' five."""
    found = [f"metadata.{key}" for key in set(metadata) - METADATA]
    name = metadata.get("name") or metadata.get("generateName", "") + "00000"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 47:
        found.append(f"the name {name}")
    return found


def job_problems(spec: Node) -> list[str]:
    """KubeRay's rules for a RayJob, and ours: deadlines, no cluster bought for exit code 3."""
    found = []
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds", "ttlSecondsAfterFinished"):
        if spec.get(name, 0) <= 0:
            found.append(f"{name} is missing: a job that cannot start waits for ever")
    if not spec.get("shutdownAfterJobFinishes"):
        found.append("shutdownAfterJobFinishes is missing: the cluster stays, and is paid for")
    if not 0 <= spec.get("backoffLimit", -1) <= 3:
        found.append("backoffLimit: each retry is a new cluster")
    if spec.get("submissionMode") != "HTTPMode":
        found.append("submissionMode: only HTTPMode leaves the entrypoint as it is")
    forbidden = {"submitterConfig", "submitterPodTemplate", "clusterSelector", "deletionStrategy"}
    resources = {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"}
    found += [f"{name} does not belong here" for name in (forbidden | resources) & set(spec)]
    found += runtime_env_problems(yaml.safe_load(spec["runtimeEnvYAML"]))
    return found + entrypoint_problems(spec)


def runtime_env_problems(runtime_env: Node) -> list[str]:
    """No packages installed by a job, no token in it, and time for an orderly end."""
    found = [f"runtime_env.{key}" for key in set(runtime_env) - {"env_vars", "working_dir"}]
    names = set(runtime_env["env_vars"])
    found += [f"runtime_env: nobody reads {n}" for n in names - tools.environment_names()]
    found += [f"runtime_env: {n} is a secret" for n in names if "TOKEN" in n or "SECRET" in n]
    if int(runtime_env["env_vars"].get("RAY_JOB_STOP_WAIT_TIME_S", 0)) < 15:
        found.append("RAY_JOB_STOP_WAIT_TIME_S: an orderly end takes 8 s, Ray kills after 3")
    return found


def entrypoint_problems(spec: Node) -> list[str]:
    """The command parses, asks for what the cluster can have, and turns 3 into success."""
    entrypoint = spec["entrypoint"]
    command, _, rule = entrypoint.partition(" || ")
    program, *arguments = shlex.split(command)
    if program != "python" or arguments[:2] != ["-m", "jobs.encode"]:
        return [f"entrypoint: {program} {' '.join(arguments[:2])}"]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            flags = encode.parse(arguments[2:])
    except SystemExit:
        return ["entrypoint: jobs.encode does not take these arguments"]
    found = [f"entrypoint: {url}" for url in [*flags.input, flags.output] if "://" not in url]
    for code in (0, 1, 2, 3):
        done = subprocess.run(["sh", "-c", f"(exit {code}) || {rule}"], capture_output=True)
        if (done.returncode == 0) != (code in (0, 3)) or done.stderr:
            found.append(f"entrypoint: exit code {code} becomes {done.returncode}")
    workers = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    if flags.device != "cuda" or flags.replicas > workers["maxReplicas"] * int(limits[GPU]):
        found.append(f"entrypoint: {flags.replicas} replicas on {flags.device} never come up")
    if flags.cpus_per_replica > float(limits["cpu"]):
        found.append(f"entrypoint: a replica of {flags.cpus_per_replica} CPUs fits no worker")
    return found


def cluster_problems(spec: Node) -> list[str]:
    """KubeRay's rules for a cluster, and ours for a head without work and workers on spot."""
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    found = []
    if spec["authOptions"] != {"mode": "token"}:
        found.append("authOptions: whoever reaches the port runs code")
    if [int(n) for n in spec["rayVersion"].split(".")] < [2, 52, 0]:
        found.append("rayVersion: tokens need 2.52")
    if not spec["enableInTreeAutoscaling"] or spec["autoscalerOptions"]["version"] != "v2":
        found.append("autoscaler: version 1 drops all nodes when the API is slow")
    if spec["autoscalerOptions"].get("idleTimeoutSeconds", 0) < 60:
        found.append("idleTimeoutSeconds: GPUs would come and go between two shards")
    if not workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]:
        found.append("replicas of the workers outside minReplicas and maxReplicas")
    for group, capacity in ((head, ON_DEMAND), (workers, SPOT)):
        found += group_problems(group, capacity)
    if head["rayStartParams"].get("num-cpus") != "0":
        found.append("num-cpus of the head: replicas would run beside the driver")
    notes = head["template"].get("metadata", {}).get("annotations", {})
    if notes != {"karpenter.sh/do-not-disrupt": "true"}:
        found.append("the head may be moved to a cheaper node in the middle of a job")
    return found + autoscaler_problems(spec)


def group_problems(group: Node, capacity: Node) -> list[str]:
    """One pod template: Kubernetes' schema, and the names that it refers to."""
    from ray.scripts.scripts import start

    template, spec = group["template"], group["template"]["spec"]
    flags = {o.removeprefix("--") for p in start.params for o in p.opts}
    found = [f"rayStartParams: {key}" for key in set(group["rayStartParams"]) - flags]
    store = int(group["rayStartParams"].get("object-store-memory", 0))
    if not 75 << 20 <= store <= 1 << 30:
        found.append("object-store-memory: Ray takes 30 % of the memory unless told")
    found += pod_problems(template)
    wanted = {"serviceAccountName": ACCOUNT, "restartPolicy": "Never", "nodeSelector": capacity}
    found += [f"{k}: {spec.get(k)}" for k, value in wanted.items() if spec.get(k) != value]
    if not spec["securityContext"].get("runAsNonRoot"):
        found.append("runAsNonRoot")
    (container,) = spec["containers"]
    return found + container_problems(container, spec)


def pod_problems(template: Node) -> list[str]:
    """Kubernetes' own schema, made strict."""
    kubernetes = tools.module("kubernetes_validate")
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] = {"name": "pod"} | template.get("metadata", {})
    try:
        kubernetes.validate(pod, kubernetes.latest_version(), strict=True)
    except jsonschema.ValidationError as error:
        return [f"pod: {error.json_path}: {error.message[:200]}"]
    return []


def container_problems(container: Node, spec: Node) -> list[str]:
    """Names in a container whose other half stands elsewhere."""
    found = [] if container["image"] == IMAGE else [f"image {container['image']}"]
    names = {variable["name"] for variable in container["env"]}
    found += [f"env: nobody reads {name}" for name in names - tools.environment_names()]
    for port in container["ports"]:
        if PORTS.get(port["name"]) != port["containerPort"]:
            found.append(f"port {port['name']} {port['containerPort']}")
    volumes = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    if set(mounts) != {"/dev/shm", "/tmp/ray"} or set(mounts.values()) != set(volumes):
        found.append(f"volumes {sorted(volumes)} on {sorted(mounts)}")
    elif volumes[mounts["/dev/shm"]].get("medium") != "Memory":
        found.append("/dev/shm is no memory")
    if container["securityContext"].get("capabilities") != {"drop": ["ALL"]}:
        found.append("capabilities")
    found += resource_problems(container["resources"])
    gpu = GPU in container["resources"]["limits"]
    tolerated = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}] if gpu else []
    if spec.get("tolerations", []) != tolerated:
        found.append(f"tolerations {spec.get('tolerations')}")
    return found


def resource_problems(resources: Node) -> list[str]:
    """Requests are limits, so that the pod is not the first to be evicted; of things that exist."""
    found = [f"resource {name}" for name in set(resources["limits"]) - {"cpu", "memory", GPU}]
    return found + ([] if resources["requests"] == resources["limits"] else ["requests"])


def autoscaler_problems(spec: Node) -> list[str]:
    """What Ray's autoscaler makes of it: a head without CPUs, one GPU a worker."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    cluster = {"metadata": {"name": "pqmim", "namespace": "default"}, "spec": spec}
    derived = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    types = derived["available_node_types"]
    head, worker = (types[n]["resources"] for n in (derived["head_node_type"], "gpu"))
    found = resource_problems(spec["autoscalerOptions"]["resources"])
    found += [] if head["CPU"] == 0 and "GPU" not in head else [f"the head has {head}"]
    return found + ([] if worker.get("GPU") == 1 else [f"a worker has {worker}"])
