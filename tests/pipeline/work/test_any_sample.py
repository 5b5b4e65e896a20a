"""Whatever a tar holds: one row a sample, a table that can be read back, and never an exception."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archive import table
from pipeline.archive.table import MAX_GRID, Row
from pipeline.plan import Facts, Plan, ShardResult, ShardSpec, Status
from pipeline.tars.samples import ShardReader
from pipeline.work.encoder import by_status, encode_rows, filled, fitting
from pipeline.work.replica import Clock, Replica
from tests.corpus import bomb_png, jpeg, make_tar, png
from tests.models import tiny_codec
from tests.properties import examples

CODEC = tiny_codec()
KEEP = ("json", "json.a", "json.b:int64", "json.c:float32", "txt", "cls:int32", "meta.json.d.e",
        "caption.txt", "f:float64")  # fmt: skip
PLAN = Plan(model=CODEC.fingerprint, quality=1, stride=16, codewords=16, inputs=1,
            inputs_digest="", store="codes", keep=KEEP, hash=True)  # fmt: skip
PLANS = [PLAN, replace(PLAN, format_version=2)]
REPLICA = Replica(CODEC)
SPEC = ShardSpec("s", "/s.tar", 1, "e")


def rows_of(data: bytes, plan: Plan = PLAN) -> list[Row]:
    """The rows that a tar becomes, by way of its table."""
    reader = ShardReader(io.BytesIO(data), len(data), skip_apple=plan.exact)
    made, pixels = encode_rows(reader, plan, REPLICA, Clock())
    rows, pixels = fitting(made, pixels, plan)
    facts = Facts(by_status(rows), pixels, filled=filled(rows, plan))
    written = table.write_table(rows, plan, SPEC, ShardResult.of(SPEC, facts))
    back = list(table.read_rows(written))
    assert len(back) == reader.samples and pixels >= 0
    for row in back:
        assert row.status is Status.OK or row.error
        assert (row.codes is not None) == (row.status is Status.OK)
    return back


EXTENSIONS = ["jpg", "png", "JPG", "json", "txt", "caption.txt", "meta.json", "cls", "f", ""]
PICTURE = st.sampled_from([png(16, 16), jpeg(20, 17), b"", b"\xff\xd8", png(3, 3)])
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**63, -(2**63), 2**63 - 1, 10**400, 1e300, -0.0])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(st.characters(codec=None))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abcde"), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def documents(draw) -> bytes:
    """JSON of any kind, also what is none, and what Python writes and no standard knows."""
    if draw(st.integers(0, 9)) == 0:
        depth = draw(st.sampled_from([1, 300, 990, 1100, 20_000]))
        return b'{"a": ' + b"[" * depth + b"]" * draw(st.sampled_from([depth, depth - 1]))
    value = draw(st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4) | VALUES)
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    return text.encode(draw(st.sampled_from(["utf-8", "utf-16"])), "surrogatepass")


@st.composite
def sizes(draw) -> bytes:
    """A picture of any size by its header; the rest is not there."""
    side = st.one_of(st.integers(1, 2**31 - 1), st.sampled_from([1, 65535, 2**31 - 1]))
    return bomb_png(draw(side), draw(side))


@st.composite
def tars(draw) -> bytes:
    """Members of any name and content; keys repeat, and no few bytes are no text."""
    entries = []
    keys = st.one_of(st.sampled_from(["a", "b/c", "é"]), st.binary(max_size=6).map(named))
    for _ in range(draw(st.integers(1, 5))):
        key = draw(keys)
        for extension in draw(st.lists(st.sampled_from(EXTENSIONS), max_size=4)):
            other = draw(st.integers(0, 15)) == 0
            kind = named(draw(st.binary(max_size=5))) if other else extension
            if kind.lower() in ("jpg", "png"):
                data = draw(sizes() if other else PICTURE)
            elif "json" in kind:
                data = draw(documents())
            else:
                data = draw(st.binary(max_size=12) | st.text(max_size=8).map(
                    lambda text: text.encode("utf-8", "surrogatepass")))  # fmt: skip
            entries.append((f"{key}.{kind}" if kind else key, data))
    return make_tar(entries, draw(st.sampled_from([1, 2])))  # GNU, PAX


def named(data: bytes) -> str:
    """Any bytes as tarfile has a name of them."""
    return data.replace(b"\0", b"").decode("utf-8", "surrogateescape")


@pytest.mark.timeout(4 * 3600)  # the long form takes some forty minutes
@settings(max_examples=examples(100_000), deadline=None)
@given(tars(), st.sampled_from(PLANS))
def test_any_tar_gives_one_row_a_sample(data: bytes, plan: Plan) -> None:
    rows_of(data, plan)


@settings(max_examples=examples(10_000), deadline=None)
@given(st.data())
def test_any_row_fits_a_table_or_says_why_not(data: st.DataObject) -> None:
    """Values that no sample should ever give: the rows are as many, and each has its key."""
    anything = st.one_of(VALUES, st.binary(max_size=3), st.builds(object), st.integers())
    number = st.integers(-(2**70), 2**70)
    rows = [
        Row(
            data.draw(st.text(st.characters(codec=None), max_size=4)), Status.OK,
            data.draw(st.none() | st.text(st.characters(codec=None), max_size=4)),
            *(data.draw(st.just(16) | number) for _ in range(4)), b"x", None, 1,
            kept={name: data.draw(anything) for name in ("json.a", "json.b", "cls")},
        )
        for _ in range(data.draw(st.integers(0, 4)))
    ]  # fmt: skip
    fit = table.fit(rows, PLAN)
    back = list(
        table.read_rows(table.write_table(fit, PLAN, SPEC, ShardResult.of(SPEC, Facts({}))))
    )
    assert [row.key for row in back] == [table.text(row.key) for row in rows]
    assert all(a.status is Status.OK or "cannot hold" in a.error for a in back)


# The single kinds, by their right value


def sample(key: str, document: bytes) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", jpeg(20, 20)), (f"{key}.json", document)]


def test_half_an_emoji_costs_a_value_and_nothing_else() -> None:
    entries = [*sample("0", b'{"a": "fine"}'), *sample("1", b'{"a": "so happy \\ud83d"}'),
               *sample("2", b'{"a": "fine"}')]  # fmt: skip
    rows = rows_of(make_tar(entries))
    assert [row.status for row in rows] == [Status.OK] * 3
    assert [row.kept["json.a"] for row in rows] == ["fine", None, "fine"]
    assert rows[1].error.startswith("json.a: not string") and rows[0].error is None


def test_deep_json_costs_a_value_and_nothing_else() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    rows = rows_of(make_tar([*sample("0", deep), *sample("1", b'{"a": "x"}')]))
    assert [row.kept["json.a"] for row in rows] == [None, "x"]
    assert "nested too deeply" in rows[0].error and rows[0].kept["json"] == deep.decode()


def test_member_names_that_are_not_utf_8_are_escaped_where_they_are_named() -> None:
    rows = rows_of(make_tar([("caf\udce9.\udcff\udcfe", b"x"), ("b.jpg", jpeg(20, 20))]))
    assert rows[0].status is Status.MISSING_IMAGE and rows[0].key == "caf\\udce9"
    assert "\\udcff\\udcfe" in rows[0].error and rows[1].status is Status.OK


@pytest.mark.parametrize("plan", PLANS)
def test_a_grid_that_no_table_holds_is_too_large(plan: Plan) -> None:
    wide = png(16 * MAX_GRID + 1, 16)
    small = replace(plan, min_side=1)
    rows = rows_of(
        make_tar([("a.jpg", jpeg(20, 20)), ("w.png", wide), ("b.png", png(17, 17))]), small
    )
    assert [row.status for row in rows] == [Status.OK, Status.TOO_LARGE, Status.OK]
    assert "32768 x 1: a table takes 32767" in rows[1].error


def test_the_row_that_arrow_refuses_is_found_among_many() -> None:
    rows = [Row(f"{n}", Status.OK, None, 16, 16, 1, 1, b"x", None, 1, kept={"cls": n})
            for n in range(1000)]  # fmt: skip
    rows[613] = replace(rows[613], kept={"cls": 2**40})
    rows[800] = replace(rows[800], width=2**40)
    fit, pixels = fitting(rows, 1000 * 256, replace(PLAN, keep=("cls:int32",), hash=False))
    assert [a.key for a, b in zip(rows, fit, strict=True) if a != b] == ["613", "800"]
    assert fit[613].status is Status.OK and fit[613].error.startswith(
        "kept columns: a table cannot"
    )
    assert fit[800].status is Status.DECODE_ERROR and "a table cannot hold it" in fit[800].error
    assert pixels == 1000 * 256 - 2**40 * 16


def test_ids_scores_and_captions_come_out_as_they_are() -> None:
    entries = []
    for i in range(3):
        document = json.dumps({"b": 1234567890123456789 + i, "c": 1e300}).encode()
        entries += [*sample(f"{i}", document), (f"{i}.caption.txt", b"a caption")]
    rows = rows_of(make_tar(entries))
    assert [row.kept["json.b"] for row in rows] == [1234567890123456789 + i for i in range(3)]
    assert {row.kept["json.c"] for row in rows} == {None}
    assert all("json.c: not float32" in row.error for row in rows)
    assert {row.kept["caption.txt"] for row in rows} == {"a caption"}
    assert filled(rows, PLAN)["json.b"] == 3 and filled(rows, PLAN)["txt"] == 0
    assert np.all([row.status is Status.OK for row in rows])
