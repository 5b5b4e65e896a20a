"""The last gate before originals are deleted, as the work of a replica: one shard, one verdict.

    check_shard: ledger, table, listing --> bytes that the ledger vouches for
    compare_shard (every image against its source) or decode_share (some, or all, without)
    --> runs/<run>/shards/<shard>.json, and a ShardResult for the driver

The verdict of a shard is an object of its own, written when the shard is finished: a verification
that was interrupted goes on with those that have none.  Whatever is wrong with a shard is in its
verdict; only what says nothing about the shard, such as a store that does not answer, is raised.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.archive import layout
from pipeline.archive.table import BadTable
from pipeline.plan import Facts, Plan, PlanMismatch, ShardResult, ShardSpec, Status
from pipeline.proof.pictures import PIXELS_OF, compare_shard, decode_share
from pipeline.proof.tables import Sayer, check_shard
from pipeline.proof.verdict import Verdict
from pipeline.store import storage
from pipeline.store.storage import AccessDenied, NotFound, StorageError, Store, TransientStorage
from pipeline.work.replica import Clock, Replica
from pipeline.work.shard import cost


@dataclass(frozen=True)
class Prover:
    """The work of a replica: one shard proved, its verdict kept in the archive."""

    run: str  # name of the verification
    full: bool
    fraction: float  # of the images, where the sources are not read
    sources: bool
    min_psnr: float  # dB, an image below is a problem

    def __call__(
        self, spec: ShardSpec, plan: Plan, store: Store, replica: Replica, attempt: int = 1
    ) -> ShardResult:
        """Prove what can be proved; whatever is wrong with the shard is in its verdict.

        Raises:
            pipeline.store.storage.TransientStorage, AccessDenied: the storage does not answer, or
                not to us, which says nothing about the shard.
            PlanMismatch: the replica has another model.
        """
        begin, clock = time.perf_counter(), Clock()
        replica.clocks[spec.shard_id] = clock
        if replica.codec.fingerprint != plan.model:
            raise PlanMismatch(
                f"{store.url(layout.model_name(plan.model))}: was replaced by model "
                f"{replica.codec.fingerprint[:16]}: put the right weights there"
            )
        version = table_version(store, spec)  # before the proof: one replaced meanwhile is another
        found, data = check_shard(store, plan, spec, self.sources)
        try:
            self._prove(data, spec, plan, replica, clock, found)
        except (TransientStorage, AccessDenied):
            raise
        except (BadTable, StorageError) as error:
            Sayer(found, spec.shard_id)(str(error))
        body = {"prover": asdict(self), "plan": plan.digest, "spec": asdict(spec),
                "table": version, "found": found.to_json()}  # fmt: skip
        store.put(record_name(self.run, spec.shard_id), (json.dumps(body) + "\n").encode())
        # Done whatever was found: the archive's own records are not touched.
        facts = Facts({Status.OK.value: found.proved["images"], **found.absent})
        return ShardResult.of(
            spec, facts, table_bytes=len(data or b""), attempt=attempt, **cost(clock, begin)
        )

    def _prove(
        self, data: bytes | None, spec: ShardSpec, plan: Plan, replica: Replica, clock: Clock,
        found: Verdict,
    ) -> None:  # fmt: skip
        if data is None or found.problems:
            found.not_proved.append("images of shards with other problems were not decoded")
        elif self.full and self.sources:
            compare_shard(data, plan, spec, replica, self.min_psnr, found, clock)
        else:
            fraction = 1.0 if self.full else self.fraction
            decode_share(data, plan, spec, replica, fraction, found, clock)
            if not self.sources:
                found.not_proved.append("the sources were not looked at")
            if not self.full:
                found.not_proved.append(
                    f"of every shard {self.fraction:.4g} of the images were decoded to codes, one "
                    f"in {PIXELS_OF} of these to pixels, and of the others nothing but their bytes "
                    "is proved"
                )


def record_name(run: str, shard_id: str) -> str:
    """The object with the verdict of a shard."""
    return f"runs/{run}/shards/{shard_id}.json"


def table_version(store: Store, spec: ShardSpec) -> list[object]:
    """Size and ETag of a shard's table as it is now."""
    info = store.info(layout.table_name(spec.shard_id))
    return [] if info is None else [info.size, info.etag]


def read_record(store: Store, plan: Plan, spec: ShardSpec, prover: Prover) -> Verdict | None:
    """The verdict that this verification has of a shard, if it is of this plan and these checks."""
    body = _body(store, plan, spec, prover)
    return None if body is None else Verdict.from_json(body["found"])


def _body(store: Store, plan: Plan, spec: ShardSpec, prover: Prover) -> dict[str, Any] | None:
    wanted = {"prover": asdict(prover), "plan": plan.digest, "spec": asdict(spec)}
    try:
        body = json.loads(store.get(record_name(prover.run, spec.shard_id)))
        return body if all(body[name] == value for name, value in wanted.items()) else None
    except NotFound:
        return None
    except (ValueError, TypeError, KeyError):
        return None  # cut or foreign: as if it were not there


def still_proved(store: Store, plan: Plan, spec: ShardSpec, prover: Prover) -> bool:
    """Whether an earlier submission found nothing wrong with a shard, and table and source are the
    objects that it saw, by size and ETag; its verdict is dropped otherwise."""
    body = _body(store, plan, spec, prover)
    if body is not None and not body["found"]["problems"]:
        try:
            if prover.sources:
                source = storage.ObjectInfo(spec.url, spec.size, spec.etag)
                storage.open_read(spec.url, source).close()
            if body["table"] == table_version(store, spec):
                return True
        except (TransientStorage, AccessDenied):
            raise
        except StorageError:
            pass  # gone or replaced: it will be named when the shard is proved again
    store.delete(record_name(prover.run, spec.shard_id))
    return False
