"""What infra/ tells AWS: the cluster of ``ray up``, its workers' rights, the lifecycle rule."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import botocore.session
import moto.settings
import pytest
import yaml
from botocore.model import Shape
from botocore.validate import ParamValidator

from pipeline.archive import commit
from pipeline.store.errors import AccessDenied, NotWritable
from pipeline.store.storage import Store
from tests.infra import tools
from tests.infra.commands import lines_of, problems_of
from tests.infra.kuberay import IMAGE
from tests.infra.spelling import INFRA, unnoticed

Config = dict[str, Any]
RUN_OPTIONS = {"--ulimit": "nofile=65536:65536", "--shm-size": "1g", "--env": "RAY_AUTH_MODE=token"}


@functools.cache
def operation(service: str, name: str) -> Shape:
    """The input that AWS takes."""
    model = botocore.session.get_session().get_service_model(service)
    return model.operation_model(name).input_shape


def shape_problems(value: Any, shape: Shape) -> list[str]:
    """Unknown members and types, by botocore, and words that are none of an enumeration's."""
    report = ParamValidator().validate(value, shape)
    found = [report.generate_report()] if report.has_errors() else []

    def walk(value: Any, shape: Shape) -> Iterator[str]:
        if shape.type_name == "structure":
            for key, inner in value.items():
                if key in shape.members:
                    yield from walk(inner, shape.members[key])
        elif shape.type_name == "list":
            for inner in value:
                yield from walk(inner, shape.member)
        elif getattr(shape, "enum", None) and value not in shape.enum:
            yield f"{shape.name}: {value}"

    return found + list(walk(value, shape))


def cluster_problems(text: str) -> list[str]:
    """Ray takes it, EC2 takes each kind of node, and what runs on them parses."""
    from ray.autoscaler._private import util

    config = yaml.safe_load(text)
    util.validate_config(util.prepare_config(copy.deepcopy(config)))
    found = provider_problems(config["provider"]) + docker_problems(config)
    run_instances = operation("ec2", "RunInstances")
    for name, node in config["available_node_types"].items():
        asked = node["node_config"] | {"MinCount": 1, "MaxCount": 1}
        found += [f"{name}: {problem}" for problem in shape_problems(asked, run_instances)]
        found += [f"{name}: resource {r}" for r in set(node["resources"]) - {"CPU", "GPU"}]
        if node["node_config"]["BlockDeviceMappings"][0]["DeviceName"] != "/dev/sda1":
            found.append(f"{name}: the root disk of the image is /dev/sda1")
        if node["node_config"]["ImageId"] != "latest_dlami":
            found.append(f"{name}: ImageId")
    return found + node_problems(config) + command_problems(config)


def provider_problems(provider: Config) -> list[str]:
    """A region that exists, zones of it, and no machine that is stopped and kept."""
    known = botocore.session.get_session().get_available_regions("ec2")
    region, zones = provider["region"], provider["availability_zone"].split(",")
    found = [] if region in known else [f"region {region}"]
    found += [zone for zone in zones if zone[:-1] != region]
    right = {"type": "aws", "region": region, "availability_zone": ",".join(zones)}
    return found + ([] if provider == right | {"cache_stopped_nodes": False} else ["provider"])


def docker_problems(config: Config) -> list[str]:
    """The container is our image, as its user, with the token where Ray looks for it."""
    docker = config["docker"]
    options = dict(option.split("=", 1) for option in docker["run_options"])
    token = {"/home/pqmim/.ray/auth_token": "~/.ray/auth_token"}
    wrong = {
        "image": docker["image"] != IMAGE,
        "run_options": options != RUN_OPTIONS,
        "file_mounts": config["file_mounts"] != token,
        "ssh_user": config["auth"] != {"ssh_user": "ubuntu"},
        "setup_commands": bool(config["setup_commands"] or config["head_setup_commands"]),
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def node_problems(config: Config) -> list[str]:
    """A head on demand without work; workers on spot with a GPU each and few rights."""
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    (workers,) = types.values()
    asked = workers["node_config"]
    wrong = {
        "head": head["resources"] != {"CPU": 0} or "InstanceMarketOptions" in head["node_config"],
        "spot": asked["InstanceMarketOptions"]["MarketType"] != "spot",
        "GPU": workers["resources"].get("GPU") != 1,
        "max_workers": workers["max_workers"] != config["max_workers"],
        "profile": asked["IamInstanceProfile"] != {"Name": "pqmim"},
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def command_problems(config: Config) -> list[str]:
    """Ray parses what starts it, and the workers go where the head listens."""
    head, workers = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    found = [p for line in head + workers for words in lines_of(line) for p in problems_of(words)]
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in head[-1].split():
        found.append("autoscaling-config: ray up puts it there")
    if "--address=$RAY_HEAD_IP:6379" not in workers[-1].split() or "--port=6379" not in head[-1]:
        found.append("the workers look for the head elsewhere")
    return found


@pytest.mark.words
def test_the_cluster_is_right_and_each_of_its_words_counts() -> None:
    text = (INFRA / "aws" / "cluster.yaml").read_text()
    assert cluster_problems(text) == []
    free = {"cluster_name: pqmim", "container_name: pqmim", "gpu:"}
    assert unnoticed(cluster_problems, text, free) == []


POLICY = (INFRA / "aws" / "policy.json").read_text()
ARCHIVE = "arn:aws:s3:::BUCKET/archive"
LEAST = {  # what a worker may do -> to which objects
    "s3:ListBucket": {"arn:aws:s3:::BUCKET"},
    "s3:GetObject": {"arn:aws:s3:::BUCKET/shards/*", f"{ARCHIVE}/*"},
    "s3:PutObject": {f"{ARCHIVE}/*"},
    "s3:DeleteObject": {f"{ARCHIVE}/probe-*", f"{ARCHIVE}/failed/*", f"{ARCHIVE}/runs/*"},
}


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def policy_problems(text: str) -> list[str]:
    """parliament's, and any right beyond the least."""
    parliament = tools.module("parliament")
    analysed = parliament.analyze_policy_string(text.replace("BUCKET", "a-bucket"))
    found = [f"{finding.issue} {finding.detail}" for finding in analysed.findings]
    policy = json.loads(text)
    given: dict[str, set[str]] = {}
    for statement in policy["Statement"]:
        found += [key for key in set(statement) - {"Sid", "Effect", "Action", "Resource"}
                  if (key, statement["Action"]) != ("Condition", "s3:ListBucket")]  # fmt: skip
        found += [] if statement["Effect"] == "Allow" else ["Effect"]
        for action in listed(statement["Action"]):
            given.setdefault(action, set()).update(listed(statement["Resource"]))
    prefixes = {"StringLike": {"s3:prefix": ["shards/*", "archive/*"]}}
    found += [] if policy["Statement"][0]["Condition"] == prefixes else ["Condition"]
    return found + ([] if given == LEAST else [f"rights {given}"])


@pytest.mark.words
def test_the_policy_is_the_least_and_each_of_its_words_counts() -> None:
    tools.module("parliament")
    assert policy_problems(POLICY) == []
    sids = {statement["Sid"] for statement in json.loads(POLICY)["Statement"]}
    assert unnoticed(policy_problems, POLICY, sids) == []


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with one shard, on a server that lets us do what the policy says and no more: all
    but the prefixes of s3:ListBucket, which moto does not look at."""
    Store(f"{s3}/shards").put("000000.tar", b"tar")
    session = botocore.session.get_session()
    iam = session.create_client("iam", region_name="us-west-2")
    user = s3.removeprefix("s3://")
    iam.create_user(UserName=user)
    document = POLICY.replace("BUCKET", user)
    iam.put_user_policy(UserName=user, PolicyName="least", PolicyDocument=document)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    yield s3


def test_the_policy_is_enough_for_a_run(bucket: str) -> None:
    archive = Store(f"{bucket}/archive")
    archive.probe()
    assert list(archive.names("probe-")) == []  # it may remove them
    assert archive.put_if_absent("plan.json", b"{}") and not archive.put_if_absent(
        "plan.json", b"[]"
    )
    assert archive.get("plan.json") == b"{}" and archive.info("codes/a.parquet") is None
    assert commit.committed_ids(archive) == set()
    archive.put("runs/one/summary.json", b"{}")
    archive.delete("runs/one/summary.json")
    assert Store(f"{bucket}/shards").get("000000.tar") == b"tar"
    assert [info.size for info in Store(f"{bucket}/shards").list("")] == [3]


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda url: Store(f"{url}/shards").delete("000000.tar"),
        lambda url: Store(f"{url}/shards").put("000000.tar", b""),
        lambda url: Store(f"{url}/archive").delete("codes/a.parquet"),
        lambda url: Store(f"{url}/archive").delete("plan.json"),
        lambda url: Store(f"{url}/elsewhere").probe(),
    ],
)
def test_the_policy_allows_nothing_else(bucket: str, forbidden: Callable[[str], object]) -> None:
    with pytest.raises((AccessDenied, NotWritable)):
        forbidden(bucket)
    assert Store(f"{bucket}/shards").get("000000.tar") == b"tar"


def lifecycle_problems(text: str) -> list[str]:
    """S3 takes it; nothing expires but what the probe may leave behind."""
    rules = json.loads(text)
    asked = {"Bucket": "a", "LifecycleConfiguration": rules}
    found = shape_problems(asked, operation("s3", "PutBucketLifecycleConfiguration"))
    expiring = {r["Filter"]["Prefix"] for r in rules["Rules"] if "Expiration" in r}
    aborting = {r["Filter"]["Prefix"] for r in rules["Rules"] if "Expiration" not in r}
    right = expiring == {"archive/probe-"} and aborting == {""}
    return found + ([] if right else [f"expires {expiring}, aborts {aborting}"])


@pytest.mark.words
def test_the_lifecycle_rule_is_right_and_each_of_its_words_counts() -> None:
    text = (INFRA / "lifecycle.json").read_text()
    assert lifecycle_problems(text) == []
    ids = {rule["ID"] for rule in json.loads(text)["Rules"]}
    assert unnoticed(lifecycle_problems, text, ids) == []
