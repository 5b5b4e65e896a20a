"""The comparison with other ways to do the job: what it feeds them, and how it counts."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.peers import data, measure, shared
from benchmarks.peers.__main__ import GRID, OURS, Place
from jobs import encode
from pipeline.tars.samples import ShardReader
from pipeline.work.images import BadImage


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return data.photographs()[:7]


def whole_pictures(folder: Path) -> int:
    """Pictures that decode, by our reader, which loses none."""
    count = 0
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:
            for sample in ShardReader(stream, path.stat().st_size):
                try:
                    shared.decoded(sample.members["jpg"])
                except (BadImage, KeyError):
                    continue
                count += 1
    return count


def test_damaged_shards_hold_what_is_said_of_them(photos: list[bytes], tmp_path: Path) -> None:
    assert data.damaged(tmp_path / "damaged", photos) == whole_pictures(tmp_path / "damaged")
    data.sound(tmp_path / "sound", photos, 2)
    assert whole_pictures(tmp_path / "sound") == 2 * data.SAMPLES
    with tarfile.open(fileobj=io.BytesIO(data.tar_of(photos, 3))) as tar:
        assert tar.getnames()[:2] == ["003-000.jpg", "003-001.jpg"]


def test_only_the_right_codes_count() -> None:
    crcs = [{1, 2}, {3}]
    assert data.right({data.key(0, 0): 2, data.key(0, 1): 3, data.key(1, 0): 1}, crcs) == 3
    assert data.right({data.key(0, 0): 3, data.key(0, 1): 1}, crcs) == 0


@pytest.mark.long
def test_a_peer_and_our_job_give_the_same_codes(photos: list[bytes], tmp_path: Path) -> None:
    data.sound(tmp_path / "sound", photos, 1)
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    place = Place(tmp_path, cores, data.expected(photos))
    for peer, flags in ((OURS, "--local"), ("clip_loop", "--workers 1 --batch 32")):
        found, right, wrong = place.run(peer, flags, "sound")
        assert (right, wrong, found.code) == (data.SAMPLES, 0, 0), found.said
        assert found.seconds > 0 and found.cpu_s > 0 and found.peak_mib > 50
        assert found.start_s > 0


def test_the_flags_of_the_grid_exist() -> None:
    where = ["--input", "a", "--output", "b"]
    for peer, grid in GRID.items():
        for flags in grid:
            parse = encode.parse if peer == OURS else lambda argv: shared.arguments("", argv)
            assert parse([*where, *flags.split()])


def test_what_a_process_and_its_children_use_is_counted(tmp_path: Path) -> None:
    busy = "x = 0\nfor i in range(6_000_000): x += i"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '''{busy}'''])"
    found = measure.run([sys.executable, "-c", script], tmp_path / "run" / "out", {}, "0")
    assert found.code == 0 and found.peak_mib > 5
