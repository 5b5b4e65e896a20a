"""What the README says is there: its commands parse, its columns exist, its targets are made."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from pipeline.archive import table
from pipeline.plan import Plan, Status

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"python -m (jobs\.\w+)((?:[^\n`|]|\\\n)*)", README)


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_every_job_command_parses(module, arguments):
    importlib.import_module(module).parse(shlex.split(arguments))


def test_the_commands_were_found():
    assert {module for module, _ in COMMANDS} >= {"jobs.encode", "jobs.verify", "jobs.decode"}


def test_the_columns_are_those_of_the_table():
    plan = Plan(model="", quality=1, stride=16, codewords=256, inputs=0, inputs_digest="")
    section = README.split("## The code table")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\| (`.*?) \|", section)))
    assert named == table.schema(plan).names
    assert set(re.findall(r"`(\w+)`", section)) >= {status.value for status in Status}


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"(?m)^([a-z0-9-]+):", (ROOT / "Makefile").read_text()))
    named = set(re.findall(r"(?m)(?:`|^    )make (?:TORCH= )?([a-z0-9-]+)", README))
    assert {"demo", "test"} <= named <= targets
