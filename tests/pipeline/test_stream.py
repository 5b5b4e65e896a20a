"""``CodeStream``: every row once, shuffled, split, filtered, bucketed; what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.archive import manifest
from pipeline.archive.table import BadTable
from pipeline.codes.by_number import (
    CodeStream,
    MissingColumn,
    MissingManifest,
    MissingValue,
    MixedGrids,
    NoCodes,
    NotHere,
    StateMismatch,
)
from tests.code_archives import make

ROOT = Path(__file__).parents[2]
GRIDS = ((2, 2), (3, 2), (1, 4))
TABLES = [300] * 5 + [1100, 0, 7]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(str(tmp_path_factory.mktemp("codes") / "a"), TABLES, GRIDS)


def stream(made, **options) -> CodeStream:
    options = {"batch_size": 16, "buffer_bytes": 6000, **options}
    return CodeStream(made.store.root, **options)


def keys(batches) -> list[str]:
    return [key for batch in batches for key in batch.key]


def test_every_ok_image_once_with_its_own_codes_and_columns(root):
    made = make(root, [300, 40], GRIDS)
    rows = {row.key: row for row in made.ok}
    seen = []
    for batch in stream(made, columns=["txt", "json.label"]).batches():
        assert batch.codes.dtype == torch.uint8 and batch.codes.shape[0] == len(batch) <= 16
        for n, key in enumerate(batch.key):
            row = rows[key]
            assert batch.codes[n].shape == (row.grid_h, row.grid_w, 3)
            assert batch.codes[n].numpy().tobytes() == row.codes
            assert batch.columns["txt"][n] == row.kept["txt"]
            assert batch.columns["json.label"][n] == row.kept["json.label"]
            seen.append(key)
    assert Counter(seen) == Counter(list(rows))


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (3, 1)])
def test_ranks_and_workers_share_the_rows(made, world, workers):
    parts = [keys(stream(made, rank=r, world_size=world).batches(workers)) for r in range(world)]
    assert Counter(sum(parts, [])) == Counter(row.key for row in made.ok)
    assert all(parts)


@pytest.mark.long  # each worker imports torch anew
def test_workers_of_s3_are_spawned(s3):
    made = make(s3 + "/a", [60])
    assert Counter(keys(stream(made).batches(1))) == Counter(row.key for row in made.ok)
    with pytest.raises(NotHere, match="spawn"):
        list(DataLoader(stream(made), batch_size=None, num_workers=1))


def test_epochs_differ_seeds_differ_and_both_repeat(made):
    one, again, other = stream(made), stream(made), stream(made, seed=1)
    epochs = [keys(one.batches()), keys(one.batches())]
    assert one.epoch == 2
    again.set_epoch(1)
    assert keys(again.batches()) == epochs[1] != epochs[0] != keys(other.batches())


def test_rows_are_mixed_across_tables(made):
    found = keys(stream(made, buffer_bytes=100_000).batches())
    neighbours = sum(abs(int(a) - int(b)) == 1 for a, b in zip(found, found[1:], strict=False))
    assert neighbours < len(found) / 50
    table_of = [int(key) // 300 for key in found[:64]]
    assert len(set(table_of)) >= 5


def test_batches_are_full_but_for_the_last_of_each_grid(made):
    for budget in (6000, 1 << 20):
        sizes = Counter(len(b) for b in stream(made, buffer_bytes=budget).batches())
        assert sum(n for size, n in sizes.items() if size < 16) <= len(GRIDS)


def test_many_grids_do_not_pile_up_beyond_the_buffer(tmp_path):
    grids = [(h, w) for h in range(1, 9) for w in range(1, 9)]
    made = make(str(tmp_path / "a"), [200] * 8, grids)
    codes, left = stream(made, buffer_bytes=3000), []
    for batch in codes.batches():
        left.append(len(codes.state_dict()["cursors"].get("0", {"carry": ()})["carry"]) // 2)
        assert len(batch)
    mean = sum(len(row.codes) for row in made.ok) / len(made.ok)
    assert 0 < max(left) * mean < 3 * 3000 + 200 * mean


def test_filters_take_what_pyarrow_would(made):
    def found(*where):
        return set(keys(stream(made, where=where).batches()))

    labels = {row.key: row.kept["json.label"] for row in made.ok}
    assert found(("json.label", "in", [3, 7])) == {k for k, v in labels.items() if v in (3, 7)}
    wide = {row.key for row in made.ok if row.width >= 48 and row.kept["json.label"] != 2}
    assert found(("width", ">=", 48), ("json.label", "!=", 2)) == wide
    texts = {row.key for row in made.ok if row.kept["txt"] is not None}
    assert found(("txt", "is valid", True)) == texts
    assert found(("txt", "is valid", False)) == set(labels) - texts
    assert found(("status", "=", "decode_error")) == set()


def test_more_than_256_codewords(tmp_path):
    made = make(str(tmp_path / "a"), [40], codewords=5000)
    rows = {row.key: row.codes for row in made.ok}
    for workers in (0, 1):
        for batch in stream(made).batches(workers):
            assert batch.codes.dtype == torch.uint16
            assert [c.numpy().tobytes() for c in batch.codes] == [rows[k] for k in batch.key]


def test_an_archive_without_images_is_an_empty_epoch(tmp_path):
    made = make(str(tmp_path / "a"), [0])
    codes = stream(made)
    assert list(codes.batches()) == [] and codes.epoch == 1


# State -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_after_any_batch_gives_the_rest_of_the_epoch(made, workers):
    whole = stream(made, columns=["json.label"])
    everything, states = [], []
    for batch in whole.batches(workers):
        everything.append((batch.key, batch.codes.numpy().tobytes()))
        states.append(whole.state_dict())
    for at in (0, len(states) // 3, len(states) - 2) if workers else range(0, len(states) - 1, 25):
        rest = stream(made, columns=["json.label"])
        rest.load_state_dict(states[at])
        assert rest.state_dict() == states[at]
        found = [(b.key, b.codes.numpy().tobytes()) for b in rest.batches(workers)]
        assert sorted(found) == sorted(everything[at + 1 :])
        assert rest.epoch == 1 and len(keys(rest.batches())) == len(made.ok)
    assert states[-1] == {**states[-1], "epoch": 1, "workers": None, "cursors": {}}


def test_a_dataloader_of_ones_own_is_marked(made):
    codes = stream(made)
    loader = iter(DataLoader(codes, batch_size=None, num_workers=1))
    first = []
    for _ in range(7):
        batch = next(loader)
        codes.mark(batch)
        first += batch.key
    next(loader)  # not marked: it comes again
    rest = stream(made)
    rest.load_state_dict(codes.state_dict())
    assert Counter(first + keys(rest.batches(1))) == Counter(row.key for row in made.ok)


def test_the_protocol_of_stateful_dataloaders(made):
    """Each worker's copy is iterated, asked for its state, and given it back in a new process."""
    codes = stream(made)
    running = iter(codes)
    first = sum((next(running).key for _ in range(11)), [])
    rest = stream(made)
    rest.load_state_dict(codes.state_dict())
    assert Counter(first + keys(iter(rest))) == Counter(row.key for row in made.ok)


def test_states_of_other_streams_are_refused(made, tmp_path):
    state = stream(made).state_dict()
    for options in ({"seed": 1}, {"batch_size": 8}, {"world_size": 2}, {"buffer_bytes": 1},
                    {"where": [("width", ">", 0)]}):  # fmt: skip
        with pytest.raises(StateMismatch, match=next(iter(options))):
            stream(made, **options).load_state_dict(state)
    with pytest.raises(StateMismatch, match="manifest"):
        stream(make(str(tmp_path / "a"), [5])).load_state_dict(state)
    codes = stream(made)
    next(codes.batches(2))
    again = stream(made)
    again.load_state_dict(codes.state_dict())
    with pytest.raises(StateMismatch, match="2 workers, this DataLoader has 1"):
        next(again.batches())


# What is refused ---------------------------------------------------------------------------------


def test_a_grid_that_was_not_asked_for_names_its_key(made):
    with pytest.raises(MixedGrids, match="key '.*where="):
        list(stream(made, grid=(2, 2)).batches())
    only = [("grid_h", "=", 2), ("grid_w", "=", 2)]
    assert list(stream(made, grid=(2, 2), where=only).batches())


def test_missing_things_name_the_command(tmp_path):
    with pytest.raises(MissingManifest, match="jobs.finish"):
        stream(make(str(tmp_path / "a"), [5], finish=False))
    with pytest.raises(NoCodes, match="jobs.transcode"):
        stream(make(str(tmp_path / "b"), [5], store="bitstream"))
    made = make(str(tmp_path / "c"), [9], change=lambda row, n: replace(row, kept={}))
    for where in ([("label", "=", 1)], [("json.label", "like", 1)]):
        with pytest.raises(MissingColumn):
            stream(made, where=where)
    with pytest.raises(MissingColumn, match="json.class"):
        stream(made, columns=["json.class"])
    with pytest.raises(MissingValue, match="is null"):
        list(stream(made, columns=["json.label"]).batches())
    valid = [("json.label", "is valid", True)]
    assert list(stream(made, columns=["json.label"], where=valid).batches()) == []


def test_damage_in_a_worker_names_the_table(tmp_path):
    made = make(str(tmp_path / "a"), [50])
    path = tmp_path / "a/codes" / f"{made.results[0].shard_id}.parquet"
    data = bytearray(path.read_bytes())
    data[data.index(made.ok[3].codes)] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadTable, match=r"row group 0.*checksum"):
        list(stream(made).batches(1))


FOOTERS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pipeline.archive import manifest
from pipeline.store.storage import Store
found = manifest.read(Store(sys.argv[1]))
for _ in range(40):
    manifest.Manifest._metadata.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        rows = [footer.num_rows for footer in pool.map(found.metadata, range(len(found.names)))]
print(sum(rows))
"""


def test_threads_may_ask_for_footers_at_once(tmp_path):
    """In a process of its own: unguarded, this corrupts its memory."""
    archive = make(str(tmp_path / "a"), [3] * 64, GRIDS)
    command = [sys.executable, "-c", FOOTERS, archive.store.root]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"{3 * 64}\n"), done.stderr


def test_a_fork_waits_for_the_reader_of_a_footer():
    """Or the child would wait for a lock whose owner it does not have."""
    manifest.READING.acquire()
    threading.Timer(0.2, manifest.READING.release).start()
    begin, child = time.monotonic(), os.fork()
    if child == 0:
        os._exit(0 if manifest.READING.acquire(timeout=60) else 1)
    assert time.monotonic() - begin > 0.1
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
