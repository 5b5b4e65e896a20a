"""What an archive is: the names of its objects, and its plan.

plan.json                         once: options, model fingerprint, digest of the input listing
inputs.parquet                    the frozen input listing
model/<fingerprint>.safetensors   the archive carries its decoder
codes/<shard>.parquet             one code table a shard, create-only
ledger/<shard>.json               after the table, create-only: rows by status, sha256, timings
failed/<shard>.json               shards given up, with the reason
damaged/<shard>.json              shards whose source an attempt could read in part only
manifest.parquet                  written by jobs.finish: one row a table
packed/*.parquet                  copies in larger tables for readers (jobs.finish --target-mb)
runs/<id>/                        summary.json and report.html of a submission, or a verification
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.plan import Plan, PlanMismatch
from pipeline.store.storage import Store

PLAN, LISTING = "plan.json", "inputs.parquet"


def model_name(fingerprint: str) -> str:
    """The archive's decoder."""
    return f"model/{fingerprint}.safetensors"


def table_name(shard_id: str) -> str:
    """The object with the shard's rows."""
    return f"codes/{shard_id}.parquet"


def ledger_name(shard_id: str) -> str:
    """The object that says that the shard is committed."""
    return f"ledger/{shard_id}.json"


def failed_name(shard_id: str) -> str:
    """The object that says that the shard was given up."""
    return f"failed/{shard_id}.json"


def damaged_name(shard_id: str) -> str:
    """The object that says that some attempt found the shard's source damaged."""
    return f"damaged/{shard_id}.json"


def ids(store: Store, prefix: str, suffix: str = ".json") -> Iterator[str]:
    """Shards by the names below ``ledger/``, ``failed/``, ``damaged/`` or ``codes/``."""
    names = (name.removeprefix(prefix) for name in store.names(prefix))
    return (name.removesuffix(suffix) for name in names if name.endswith(suffix))


def read_plan(store: Store) -> Plan:
    """The plan of an archive.

    Raises:
        NotFound: no archive was begun there.
        PlanMismatch: not a plan, or one of a newer version.
    """
    try:
        return Plan.from_json(store.get(PLAN))
    except (ValueError, TypeError) as exc:
        raise PlanMismatch(
            f"{store.url(PLAN)} is not a plan of this software ({exc}): choose another output"
        ) from exc
