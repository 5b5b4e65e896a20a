"""The example of a file of prices: it can be read, and a misspelt word in it is noticed."""

from __future__ import annotations

import botocore.session
import pytest

from pipeline.price import prices
from tests.infra.spelling import INFRA, unnoticed
from tests.infra.test_aws import operation

TEXT = (INFRA / "prices.example.yaml").read_text()


def problems(text: str) -> list[str]:
    """What Amazon does not know by these names."""
    found = prices.read(text, "example")
    machines = operation("ec2", "RunInstances").members["InstanceType"].enum
    classes = operation("s3", "PutObject").members["StorageClass"].enum
    wrong = [name for name in found.machines if name not in machines]
    wrong += [name for name in found.storage if name not in classes]
    regions = botocore.session.get_session().get_available_regions("ec2")
    wrong += [] if found.region in regions else [found.region]
    wrong += [] if found.currency == "USD" else [found.currency]
    kinds = {"same_region", "other_region", "internet"}
    return wrong + sorted(set(found.transfer_gb) ^ kinds)


@pytest.mark.words
def test_it_can_be_read_and_each_of_its_words_counts() -> None:
    assert problems(TEXT) == []
    assert unnoticed(problems, TEXT) == []
