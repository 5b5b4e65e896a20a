"""The manifests for KubeRay are right, and a misspelt word in them is noticed."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml

from tests.infra import kuberay, tools
from tests.infra.spelling import INFRA, unnoticed

FOLDER = INFRA / "kuberay"
MANIFESTS = ["raycluster.yaml", "rayjob.yaml"]
FREE = {  # names that whoever runs it chooses, and that nothing else refers to
    "name: pqmim", "generateName: pqmim-encode-", "name: ray-head", "name: ray-worker",
    "shards", "tar", "archive",
}  # fmt: skip


@pytest.mark.words
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_right_and_each_of_its_words_counts(name: str) -> None:
    tools.module("kubernetes_validate")
    text = (FOLDER / name).read_text()
    assert kuberay.problems(text) == []
    assert unnoticed(kuberay.problems, text, FREE) == []


def test_the_cluster_of_the_job_is_the_one_that_stays() -> None:
    cluster, job = (yaml.safe_load((FOLDER / name).read_text()) for name in MANIFESTS)
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def account_problems(text: str) -> list[str]:
    """The service account that the pods name, with the role of aws/policy.json."""
    manifest = yaml.safe_load(text)
    kubernetes = tools.module("kubernetes_validate")
    try:
        kubernetes.validate(manifest, kubernetes.latest_version(), strict=True)
    except jsonschema.ValidationError as error:
        return [error.message]
    metadata = manifest["metadata"]
    role = "arn:aws:iam::ACCOUNT:role/pqmim"
    right = {"name": kuberay.ACCOUNT, "annotations": {"eks.amazonaws.com/role-arn": role}}
    return [] if metadata == right else [f"metadata {metadata}"]


@pytest.mark.words
def test_the_service_account() -> None:
    tools.module("kubernetes_validate")
    text = (FOLDER / "serviceaccount.yaml").read_text()
    assert account_problems(text) == []
    assert unnoticed(account_problems, text) == []


JOB = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())["spec"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"entrypoint": JOB["entrypoint"].split(" || ")[0]}, "exit code 3"),
        ({"entrypoint": JOB["entrypoint"].replace("-eq 3", "-le 3")}, "exit code 1"),
        ({"entrypoint": JOB["entrypoint"].replace("replicas 8", "replicas 9")}, "never come up"),
        ({"submissionMode": "SidecarMode"}, "HTTPMode"),
        ({"preRunningDeadlineSeconds": 0}, "waits for ever"),
        ({"shutdownAfterJobFinishes": False}, "paid for"),
        ({"entrypointNumGpus": 1}, "does not belong"),
        ({"runtimeEnvYAML": "env_vars: {RAY_AUTH_TOKEN: x}"}, "secret"),
        ({"runtimeEnvYAML": "pip: [numpy]\nenv_vars: {}"}, "runtime_env.pip"),
    ],
)
def test_a_job_that_would_cost_too_much_is_noticed(change: dict[str, Any], says: str) -> None:
    assert any(says in problem for problem in kuberay.job_problems(JOB | change))
