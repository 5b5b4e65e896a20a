"""An archive as version 0.1.0 wrote it: read, proved and decoded by whatever version this is.

``REGENERATE_GOLDEN=1 python -m pytest`` of this file writes it anew:
a change of format, with a line in the CHANGELOG, and the old archive stays beside the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs import finish, verify
from pipeline.archive import commit, layout, table
from pipeline.codes.by_number import CodeTable
from pipeline.plan import ShardResult, Status
from pipeline.store.storage import Store
from pipeline.work import decoder
from tests.archives import encoded, shard
from tests.models import tiny_bytes

GOLDEN = Path(__file__).parents[2] / "golden" / "archive-0.1.0"
PHOTOS = Path("/tmp/photos")  # where its listing says that the sources were
ROWS, PIXELS = "rows.json", "pixels.npz"
LEVELS = 2  # of 255: decoders compute in floats, codes and bitstreams are exact


def test_write_it_anew() -> None:
    if not os.environ.get("REGENERATE_GOLDEN"):
        pytest.skip("the archive is there; REGENERATE_GOLDEN=1 writes it anew")
    shutil.rmtree(GOLDEN, ignore_errors=True)
    tars = [shard(PHOTOS / f"{name}.tar", seed) for name, seed in (("one", 0), ("two", 9))]
    made = encoded(
        GOLDEN / "archive", tars, weights=tiny_bytes(prior=True), store="both", price=0.05,
        keep=("txt",), hash=True, measure="psnr",
    )  # fmt: skip
    assert finish.main(["--archive", made.store.root]) == 0
    (GOLDEN / ROWS).write_text(json.dumps(rows(made.store), indent=1, sort_keys=True) + "\n")
    np.savez_compressed(GOLDEN / PIXELS, **pixels(made.store))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A copy: verify leaves its report in the archive."""
    shutil.copytree(GOLDEN / "archive", tmp_path / "archive")
    return Store(str(tmp_path / "archive"))


def rows(store: Store) -> dict[str, dict[str, dict[str, object]]]:
    """Everything that the tables say, by table and key; payloads by their digest."""
    found: dict[str, dict[str, dict[str, object]]] = {}
    for name in sorted(store.names("codes/")):
        own = found[name] = {}
        for row in table.read_rows(store.get(name)):
            line = {k: v for k, v in vars(row).items() if v is not None and k != "key"}
            for key, value in line.items():
                line[key] = hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value
            own[f"{row.key} {row.status.value}"] = json.loads(json.dumps(line))
    return found


def pixels(store: Store) -> dict[str, np.ndarray]:
    """Decoded pictures, uint8 [3, H, W], by the place of their rows."""
    plan = layout.read_plan(store)
    replica = decoder.load_replica(store, plan, "cpu")
    return {
        f"{number}-{place}": shown
        for number, name in enumerate(sorted(store.names("codes/")))
        for place, (_, shown) in enumerate(decoder.decode_table(store.get(name), plan, replica))
    }


def test_plan_and_ledger_are_read_to_the_last_byte(store: Store) -> None:
    plan = layout.read_plan(store)
    assert plan.to_json() == store.get(layout.PLAN) and plan.price == 0.05
    for name in store.names("ledger/"):
        assert ShardResult.from_json(store.get(name)).to_json() == store.get(name)


def test_every_row_says_what_it_said(store: Store) -> None:
    wanted = json.loads((GOLDEN / ROWS).read_text())
    assert rows(store) == wanted
    statuses = [row["status"] for own in wanted.values() for row in own.values()]
    assert sorted(set(statuses)) == ["decode_error", "duplicate_key", "ok", "too_small"]


def test_bitstreams_are_the_codes_and_pictures_the_pictures(store: Store) -> None:
    plan = layout.read_plan(store)
    replica = decoder.load_replica(store, plan, "cpu")
    for name in store.names("codes/"):
        ok = [row for row in table.read_rows(store.get(name)) if row.status is Status.OK]
        for row in ok:
            (codes,) = decoder.stream_codes([row], plan, replica)
            assert np.array_equal(codes, decoder.row_codes(row, plan)), row.key
    wanted, found = dict(np.load(GOLDEN / PIXELS)), pixels(store)
    assert sorted(found) == sorted(wanted) and len(found) == 10
    for place, shown in found.items():
        assert shown.shape == wanted[place].shape
        assert np.abs(shown.astype(int) - wanted[place]).max() <= LEVELS, place


def test_it_is_proved_and_its_codes_are_read_for_training(store: Store) -> None:
    assert verify.main(["--archive", store.root, "--no-source", "--device", "cpu", "--quiet"]) == 0
    codes = CodeTable(store.root)
    ok = [row for own in json.loads((GOLDEN / ROWS).read_text()).values() for row in own.values()
          if row["status"] == "ok"]  # fmt: skip
    assert len(codes) == len(ok)
    assert {
        hashlib.sha256(codes[i]["codes"].numpy().tobytes()).hexdigest() for i in range(len(codes))
    } == {row["codes"] for row in ok}


def test_nothing_is_left_to_do(store: Store) -> None:
    specs = table.read_listing(store.get(layout.LISTING))
    plan = layout.read_plan(store)
    for spec in specs:
        entry = commit.find_committed(store, plan, spec)
        assert entry is not None and entry.source_etag == spec.etag
