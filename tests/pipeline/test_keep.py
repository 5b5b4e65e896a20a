"""Passthrough columns."""

import pytest

from pipeline import keep

MEMBERS = {
    "txt": b"a caption",
    "json": b'{"label": 3, "a": {"b": 1.5}, "big": 4294967296, "t": "x"}',
}


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("txt", "a caption"),
        ("json", MEMBERS["json"].decode()),
        ("json.label:int32", 3),
        ("json.label", "3"),
        ("json.a.b:float64", 1.5),
        ("json.a", '{"b": 1.5}'),
        ("json.big:int64", 4294967296),
        ("json.missing:int32", None),
        ("cls:int32", None),
    ],
)
def test_values(spec, value):
    assert keep.parse(spec).value(MEMBERS) == (value, None)


@pytest.mark.parametrize(
    "spec", ["json.big:int32", "json.a.b:int32", "json.t:int64", "txt:float32", "json.a:int32"]
)
def test_a_value_that_does_not_fit_is_null_and_named(spec):
    value, problem = keep.parse(spec).value(MEMBERS)
    assert value is None and problem.startswith(spec.split(":")[0])


def test_bytes_that_are_not_text_are_null_and_named():
    value, problem = keep.parse("txt").value({"txt": b"\xff\xfe"})
    assert value is None and "not string" in problem


@pytest.mark.parametrize("spec", ["codes", "key", "txt:blob", "", "a b"])
def test_specs_that_cannot_be_columns_are_refused(spec):
    with pytest.raises(ValueError, match="--keep"):
        keep.parse(spec)
