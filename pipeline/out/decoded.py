"""What became of the images of an archive that was decoded, in numbers and in words.

Memory does not grow with the archive: of each list the first lines are kept, and the count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

SHOWN = 50  # lines of each list


@dataclass
class Lines:
    """A list of which the first lines are kept."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(line)

    def join(self, other: Lines) -> None:
        """Another list's."""
        self.count += other.count
        self.first += other.first[: SHOWN - len(self.first)]

    def text(self, title: str) -> Iterable[str]:
        """The lines, and how many more there are."""
        yield from (f"{title}: {line}" for line in self.first)
        if self.count > len(self.first):
            yield f"{title}: and {self.count - len(self.first)} more"


@dataclass
class Totals:
    """What became of the images."""

    written: int = 0
    there: int = 0
    bad: Lines = field(default_factory=Lines)  # rows without a picture
    statuses: dict[str, int] = field(default_factory=dict)
    problems: Lines = field(default_factory=Lines)
    keys: set[str] = field(default_factory=set)  # met so far, of those asked for

    def join(self, other: Totals) -> None:
        """Add another shard's."""
        self.written += other.written
        self.there += other.there
        self.bad.join(other.bad)
        self.problems.join(other.problems)
        self.keys |= other.keys
        for status, count in other.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + count

    @property
    def progress(self) -> str:
        """In a few words."""
        return f"{self.written} images, {self.there} were there, {self.bad.count} bad"

    def text(self) -> str:
        """The final text."""
        bad = ", ".join(f"{n} {s}" for s, n in sorted(self.statuses.items())) or "none"
        head = f"{self.written} images written, {self.there} were there; rows without: {bad}"
        lines = [*self.bad.text("no picture"), *self.problems.text("problem")]
        return "\n".join([head, *lines])
