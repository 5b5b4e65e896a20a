"""The example shards hold what the demo promises to show."""

from __future__ import annotations

import io
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, UnidentifiedImageError

EXAMPLES = Path(__file__).parents[2] / "examples"
SHARDS = sorted((EXAMPLES / "shards").glob("*.tar"))
OPEN = ("CC0-1.0", "public domain")


@cache
def samples() -> dict[str, dict[str, bytes]]:
    """Members by key and extension; a duplicate of either is an error."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in SHARDS:
        keys: set[str] = set()
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                assert key in keys or key not in found, f"{key} is in two shards"
                assert extension not in found.get(key, {}), f"{member.name} is there twice"
                keys.add(key)
                found.setdefault(key, {})[extension] = content.read()
    return found


def image(key: str) -> Image.Image:
    parts = samples()[key]
    return Image.open(io.BytesIO(parts.get("jpg") or parts["png"]))


def labels() -> dict[str, dict[str, Any]]:
    return {key: json.loads(parts["json"]) for key, parts in samples().items()}


def test_shards_hold_about_sixty_samples_in_less_than_8_mb() -> None:
    assert [shard.name for shard in SHARDS] == ["photos-000000.tar", "photos-000001.tar"]
    assert sum(shard.stat().st_size for shard in SHARDS) < 8_000_000
    assert 55 <= len(samples()) <= 70


def test_every_sample_is_one_image_file_a_caption_and_labels() -> None:
    for key, parts in samples().items():
        assert set(parts) in ({"jpg", "json", "txt"}, {"png", "json", "txt"}), key
        assert parts["txt"].decode().strip() == labels()[key]["title"]


def test_every_sample_names_an_open_licence_and_its_source() -> None:
    for key, label in labels().items():
        assert label["licence"].startswith(OPEN), key
        assert label["author"] and label["source"], key
        assert label["page"].startswith("https://github.com/") or key == "field-notes"


def test_attribution_lists_every_sample() -> None:
    table = (EXAMPLES / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for key, label in labels().items():
        row = next(line for line in table.splitlines() if line.startswith(f"| {key} |"))
        assert label["licence"] in row and label["page"] in row


def test_unusual_images_are_there() -> None:
    assert image("denali").mode == "L"
    assert image("apple-crostata").mode == "RGBA"
    assert image("cyclamen").getexif()[0x0112] == 6
    assert image("polemonium").size == (40, 30)
    assert len({image(key).size for key in samples() if key != "field-notes"}) > 15


def test_two_files_cannot_be_decoded_and_all_others_can() -> None:
    broken = set()
    for key in samples():
        try:
            image(key).load()
        except (UnidentifiedImageError, OSError):
            broken.add(key)
    assert broken == {"field-notes", "crostata"}


@pytest.mark.parametrize("shard", SHARDS, ids=lambda shard: shard.name)
def test_tar_headers_carry_no_trace_of_the_machine_that_wrote_them(shard: Path) -> None:
    with tarfile.open(shard) as tar:
        heads = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    assert heads == {(0, 0, 0, "", "", 0o644)}
