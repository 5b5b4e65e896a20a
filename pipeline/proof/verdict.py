"""What a verification found, in numbers and in words: of one shard, and of a whole archive.

A shard's originals may go only on positive evidence, counted: every sample of the source read and
matched with its row, every image decoded and compared, nothing left over (``Verdict.missing``).
That no problem was noted is not enough.  ``Report`` adds shards up as they come and keeps totals
and the first messages only, so its memory does not grow with the archive; what is cut from its
lists is in the record of the shard.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from pipeline.archive import losses
from pipeline.plan import Plan, ShardSpec
from pqmim.metrics import SAME

MAX_SHARD_PROBLEMS = 20  # of one shard, in totals and in the line of the shard
MAX_MESSAGES = 10_000  # of each kind, in verify.json
SHOWN = 50  # of each kind, in the text
COUNTS = {
    "shards": "shards with a ledger entry that says done",
    "tables": "tables with the size and sha256 of the ledger, of this plan and listing",
    "rows": "rows read, page checksums right",
    "images": "images with the payload that the plan stores and the grid of their size",
    "codes": "images whose raw codes have their crc32 and the size of their grid",
    "bitstreams": "images whose bitstream was decoded, to codes that have their crc32",
    "pictures": "images decoded to pixels",
    "sources": "sources that are the object that was listed (size and ETag)",
    "whole": "sources read to their last byte, every tar header right",
    "samples": "samples of sources that have exactly their row: key, place, status, size, columns",
    "compared": "images decoded and compared with their source",
}


@dataclass
class Quality:
    """PSNR of any number of images, in dB."""

    count: int = 0
    total: float = 0.0
    lowest: float = SAME
    bins: dict[str, int] = field(default_factory=dict)  # whole dB, rounded down -> images

    def see(self, value: float) -> None:
        """Count an image."""
        self._add(1, value, value, {str(int(value)): 1})

    def add(self, other: Quality) -> None:
        """Count what was seen elsewhere."""
        self._add(other.count, other.total, other.lowest, other.bins)

    def _add(self, count: int, total: float, lowest: float, bins: dict[str, int]) -> None:
        self.count += count
        self.total += total
        self.lowest = min(self.lowest, lowest)
        _add_counts(self.bins, bins)

    @property
    def mean(self) -> float:
        """Of all images; there must be one."""
        return self.total / self.count

    def record(self) -> dict[str, object] | None:
        """For verify.json."""
        if not self.count:
            return None
        bins = dict(sorted(self.bins.items(), key=lambda item: int(item[0])))
        return {"mean": self.mean, "min": self.lowest, "images_by_db": bins}


@dataclass
class Verdict:
    """What was found of one shard, or of several."""

    proved: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    not_proved: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    absent: dict[str, int] = field(default_factory=dict)  # rows without an image, by status
    absent_keys: list[str] = field(default_factory=list)
    members: dict[str, int] = field(default_factory=dict)  # extension -> members not in the archive
    dropped: dict[str, int] = field(default_factory=dict)  # images by what their codes do not hold
    psnr: Quality = field(default_factory=Quality)
    source_sha256: str = ""  # of the tar, where it was read as a whole

    def add(self, other: Verdict) -> None:
        """Add what was found of another shard, cut to what a total can keep."""
        for mine, more in (
            (self.proved, other.proved), (self.absent, other.absent),
            (self.members, other.members), (self.dropped, other.dropped),
        ):  # fmt: skip
            _add_counts(mine, more)
        self.psnr.add(other.psnr)
        self.not_proved += [what for what in other.not_proved if what not in self.not_proved]
        _extend(self.problems, other.first_problems())
        _extend(self.absent_keys, other.absent_keys)

    def first_problems(self) -> list[str]:
        """The problems of one shard, cut short."""
        more = len(self.problems) - MAX_SHARD_PROBLEMS
        cut = [f"{self.problems[0].split(':')[0]}: and {more} more problems"] if more > 0 else []
        return self.problems[:MAX_SHARD_PROBLEMS] + cut

    @property
    def complete(self) -> bool:
        """Every shard is done and every check that was made passed."""
        return not self.problems

    def missing(self, accept_failed: bool) -> str:
        """Why the originals of this one shard must be kept; nothing if they may go."""
        proved = self.proved
        if self.problems:
            return self.problems[0]
        evidence = (
            proved["shards"] == proved["tables"] == proved["sources"] == proved["whole"] == 1,
            proved["samples"] == proved["rows"] == proved["images"] + sum(self.absent.values()),
            proved["compared"] == proved["images"] == self.psnr.count,
        )
        if not all(evidence):
            return "its source was not read and compared image by image"
        if self.absent and not accept_failed:
            return f"the archive does not hold {sum(self.absent.values())} of its samples " + (
                f"({counts(self.absent)})"
            )
        return ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``Verdict.from_json`` reads them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Verdict:
        """Undo ``to_json``."""
        return cls(**{**fields, "psnr": Quality(**fields["psnr"])})


@dataclass
class Report:
    """The archive: totals, and what may be deleted."""

    plan: Plan
    listed: int
    full: bool  # whether it was meant to read every source
    accept_failed: bool = False
    total: Verdict = field(default_factory=Verdict)
    archive: list[str] = field(default_factory=list)  # problems of no single shard
    safe_shards: int = 0
    safe_images: int = 0
    kept: list[str] = field(default_factory=list)  # shards whose originals must stay, and why

    def add(self, spec: ShardSpec, found: Verdict) -> bytes:
        """Count a shard; its line for the list of shards."""
        self.total.add(found)
        why = found.missing(self.accept_failed)
        if why:
            prefix = f"{spec.shard_id}: "
            _extend(self.kept, [prefix + why.removeprefix(prefix)])
        else:
            self.safe_shards += 1
            self.safe_images += found.proved["images"]
        line = {
            **dataclasses.asdict(spec), "safe_to_delete": not why, "why_not": why,
            "proved": {name: count for name, count in found.proved.items() if count},
            "not_in_archive": found.absent, "not_held": found.dropped,
            "not_proved": found.not_proved, "problems": found.first_problems(),
            "source_sha256": found.source_sha256,
        }  # fmt: skip
        return json.dumps(line, sort_keys=True).encode() + b"\n"

    @property
    def complete(self) -> bool:
        """No problem was found, by whatever was asked for."""
        return self.total.complete and not self.archive

    @property
    def safe(self) -> bool:
        """The originals of every shard may go."""
        return self.complete and self.listed > 0 and self.safe_shards == self.listed

    @property
    def verdict(self) -> str:
        """The last line: what may be deleted, and what goes with it."""
        if self.safe:
            return (
                f"SAFE TO DELETE the originals of {self.safe_shards} shards ({self.safe_images} "
                f"images); not covered: {'; '.join(self.not_covered())}{self.not_held('; ')}"
            )
        if self.archive:
            return f"DO NOT DELETE: {self.archive[0]}"
        if not self.full:
            return "DO NOT DELETE on this: only --full reads every source and compares every image"
        keep = self.listed - self.safe_shards
        shown = "; ".join(self.kept[:3]) + (f"; and {keep - 3} more" if keep > 3 else "")
        return (
            f"DO NOT DELETE: the originals of {keep} of {self.listed} shards must stay: {shown}. "
            f"The other {self.safe_shards} ({self.safe_images} images) are marked safe_to_delete "
            "in the list of shards"
        )

    def not_held(self, before: str = "") -> str:
        """What the images that the archive holds have lost beyond the codec's differences."""
        lost = losses.in_words(self.total.dropped, self.plan.icc)
        return f"{before}not held: {lost}" if lost else ""

    def not_covered(self) -> list[str]:
        """What the originals have that the archive has not."""
        total, plan = self.total, self.plan
        said = ["objects beside the listed shards", "the files byte for byte"]
        if total.psnr.count:
            said.append(
                f"differences from the originals within a PSNR of {total.psnr.mean:.2f} dB in the "
                f"mean and {total.psnr.lowest:.2f} dB at worst"
            )
        if plan.resize or plan.crop:
            said.append(f"pixels before resize {plan.resize} and crop {plan.crop}")
        if total.absent:
            said.append(f"{sum(total.absent.values())} failed samples ({counts(total.absent)})")
        if total.members:
            named = ", ".join(f"{n} .{e}" for e, n in sorted(total.members.items()))
            said.append(f"other members that --keep did not take whole ({named})")
        return said

    def record(self) -> dict[str, object]:
        """``verify.json``."""
        total = self.total
        return {
            "verdict": self.verdict, "complete": self.complete, "safe_to_delete": self.safe,
            "shards_listed": self.listed, "safe_shards": self.safe_shards,
            "safe_images": self.safe_images, "plan_digest": self.plan.digest,
            "accept_failed_images": self.accept_failed, "proved": total.proved,
            "psnr_db": total.psnr.record(), "not_proved": total.not_proved,
            "problems": self.archive + total.problems, "keep": self.kept,
            "not_in_archive": total.absent, "not_in_archive_keys": total.absent_keys,
            "members_not_in_archive": total.members, "not_held": total.dropped,
        }  # fmt: skip

    def text(self) -> str:
        """The record for a person; the verdict is the last line."""
        total = self.total
        lines = [f"{'complete' if self.complete else 'NOT complete'}: {self.listed} shards listed"]
        lines += [f"{total.proved[name]:>12,}  {what}" for name, what in COUNTS.items()]
        if total.psnr.count:
            lines.append(
                f"PSNR against the source: mean {total.psnr.mean:.2f} dB, lowest "
                f"{total.psnr.lowest:.2f} dB; images by dB: {self._histogram()}"
            )
        lines += [self.not_held()] if total.dropped else []
        lines += [f"not proved: {what}" for what in total.not_proved]
        for title, many, entries in (
            ("not in the archive", "samples", total.absent_keys),
            ("problem", "problems", self.archive + total.problems),
        ):
            lines += [f"{title}: {entry}" for entry in entries[:SHOWN]]
            if len(entries) > SHOWN:
                lines.append(f"{title}: and {len(entries) - SHOWN} more {many}, in verify.json")
        return "\n".join([*lines, self.verdict])

    def _histogram(self) -> str:
        """In steps of 5 dB."""
        steps: dict[str, int] = {}
        for low, count in sorted(self.total.psnr.bins.items(), key=lambda item: int(item[0])):
            first = int(low) // 5 * 5
            _add_counts(steps, {f"{first}-{first + 5}": count})
        return ", ".join(f"{count} at {step}" for step, count in steps.items())


def counts(found: dict[str, int], order: bool = True) -> str:
    """``2 decode_error, 1 too_small``."""
    return ", ".join(
        f"{n} {name}" for name, n in (sorted(found.items()) if order else found.items())
    )


def _add_counts(mine: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        mine[name] = mine.get(name, 0) + count


def _extend(mine: list[str], more: list[str]) -> None:
    """Up to a limit; where it is reached the last line says so."""
    room = MAX_MESSAGES - len(mine)
    mine += more[: max(room, 0)]
    if 0 <= room < len(more):
        mine.append("more than can be listed here: see the list of shards")
