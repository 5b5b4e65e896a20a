"""Misspelt copies of a file: how the tests of infra/ show that they notice every word.

A file of infra/ cannot be run here: there is no Kubernetes, no cloud, no Slurm.  What goes wrong
with such a file is nearly always a word that its reader does not know and passes over in silence.
So each file has a check, a function from its text to a list of what is wrong, and ``unnoticed``
misspells one word after the other, swapping two letters, and gives the words that the check let
pass.  Comments are left out, and the words that a test calls free: names that the person who runs
it chooses, and sentences for people.

Cost: one run of the check a word; a check that starts a process gets a sample of the words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from tests.properties import is_short

ROOT = Path(__file__).resolve().parent.parent.parent
INFRA = ROOT / "infra"
WORD = re.compile(r"[A-Za-z][A-Za-z0-9]{2,}")
COMMENT = re.compile(r"(?m)(?:^|(?<=\s))#(?!SBATCH|!).*$")
PLACEHOLDER = re.compile(r"[A-Z]{4,}(?:[-_][A-Z]+)*")  # put in by whoever runs it, README says so

Check = Callable[[str], list[str]]
FEW = 12  # words that make test misspells


@dataclass(frozen=True)
class Misspelt:
    """One word of a text, and the text with that word misspelt."""

    word: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.word}"


def swap(word: str) -> str:
    """Two letters in the wrong order, which no reader takes for an abbreviation."""
    for i in range(len(word) - 2, -1, -1):
        if word[i] != word[i + 1]:
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word + word[-1]


def without_comments(text: str, comment: re.Pattern[str] = COMMENT) -> str:
    """The same length, spaces for comments."""
    return comment.sub(lambda found: " " * len(found.group()), text)


def misspelt(
    text: str, free: Collection[str] = (), comment: re.Pattern[str] = COMMENT
) -> list[Misspelt]:
    """Every word outside comments, misspelt one at a time.

    Args:
        text: a file of infra/.
        free: words, and phrases, in which a slip is no error of the file.
    """
    seen = without_comments(text, comment)
    for phrase in sorted(free, key=len, reverse=True):
        pattern = rf"(?<![A-Za-z0-9]){re.escape(phrase)}(?![A-Za-z0-9])"
        seen = re.sub(pattern, lambda found: " " * len(found.group()), seen)
    found = []
    for match in WORD.finditer(seen):
        word, start = match.group(), match.start()
        if PLACEHOLDER.fullmatch(word):
            continue
        changed = text[:start] + swap(word) + text[match.end() :]
        found.append(Misspelt(word, text.count("\n", 0, start) + 1, changed))
    return found


def unnoticed(
    check: Check,
    text: str,
    free: Collection[str] = (),
    comment: re.Pattern[str] = COMMENT,
    sample: int | None = None,
) -> list[str]:
    """The misspelt words that a check lets pass; of ``sample`` words, the same ones every time.

    ``make test`` tries FEW of a file, the long form all: mark its test with ``words``.
    """
    words = misspelt(text, free, comment)
    assert words, "no word to misspell: everything is free?"
    sample = min(sample or len(words), FEW if is_short() else len(words))
    if sample < len(words):
        words = random.Random(len(text)).sample(words, sample)
    return [str(word) for word in words if not _notices(check, word.text)]


def _notices(check: Check, text: str) -> bool:
    """Whether a check finds something wrong; one that raises has."""
    try:
        return bool(check(text))
    except Exception:
        return True
