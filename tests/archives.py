"""Small archives for tests, made without Ray: real tars through the real encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.archive import commit, layout, table
from pipeline.plan import Plan, ShardResult, ShardSpec, listing_digest
from pipeline.store import storage
from pipeline.store.shard_names import shard_id
from pipeline.store.storage import Store
from pipeline.work.encoder import encode_shard
from pipeline.work.replica import Replica
from pqmim.codec import Codec
from tests.corpus import jpeg, make_tar, png
from tests.models import tiny_bytes


@dataclass(frozen=True)
class Archive:
    """An archive, and what it was made with."""

    store: Store
    plan: Plan
    specs: list[ShardSpec]
    replica: Replica

    @property
    def root(self) -> Path:
        """Its folder."""
        return Path(self.store.root)

    def table(self, number: int = 0) -> Path:
        """The file of a code table."""
        return self.root / layout.table_name(self.specs[number].shard_id)

    def ledger(self, number: int = 0) -> Path:
        """The file of a ledger entry."""
        return self.root / layout.ledger_name(self.specs[number].shard_id)


def begin(
    root: Path | str, inputs: Sequence[Path], weights: bytes | None = None, **changes: Any
) -> Archive:
    """An archive with plan, listing and model, and no shard encoded; it stores raw codes unless
    told otherwise, and then the model has a prior."""
    changes = {"store": "codes", **changes}
    weights = tiny_bytes(prior=changes["store"] != "codes") if weights is None else weights
    codec = Codec.from_bytes(weights)
    found = storage.expand([str(path) for path in inputs])
    specs = [ShardSpec(shard_id(o.url), o.url, o.size, o.etag) for o in found]
    plan = Plan(
        model=codec.fingerprint, quality=3, stride=codec.config.stride,
        codewords=codec.config.codewords, inputs=len(specs), inputs_digest=listing_digest(specs),
        **changes,
    )  # fmt: skip
    store = Store(str(root))
    commit.begin(store, plan)
    store.put_if_absent("inputs.parquet", table.write_listing(specs))
    store.put_if_absent(layout.model_name(plan.model), weights)
    return Archive(store, plan, specs, Replica(codec))


def encoded(root: Path | str, inputs: Sequence[Path], **changes: Any) -> Archive:
    """The same, with every shard encoded."""
    archive = begin(root, inputs, **changes)
    for spec in archive.specs:
        encode_shard(spec, archive.plan, archive.store, archive.replica)
    return archive


def shard(path: Path, seed: int = 0) -> Path:
    """A tar of five pictures in three shapes, a bad one, one too small and a repeated key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        ("a/first.jpg", jpeg(50, 40, seed)), ("a/first.txt", b"the first"),
        ("tall.png", png(33, 61, seed + 1)),
        ("broken.jpg", b"not a picture"),
        ("wide.jpg", jpeg(61, 33, seed + 2)),
        ("tiny.png", png(5, 5)),
        ("second.jpg", jpeg(50, 40, seed + 3)), ("second.txt", "größer".encode()),
        ("tall.jpg", jpeg(40, 40, seed + 4)),
        ("turned.jpg", jpeg(40, 50, seed + 5, exif_orientation=6)),
    ]  # fmt: skip
    path.write_bytes(make_tar(entries))
    return path


def committed(store: Store) -> dict[str, ShardResult]:
    """Every ledger entry, by shard."""
    return {e.shard_id: e for e in commit.entries(store, layout.ids(store, "ledger/"))}
