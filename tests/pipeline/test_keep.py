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


def read(spec: str, value: str):
    """One field of a JSON member that holds this text as its value."""
    return keep.parse(spec).value({"json": f'{{"a": {value}}}'.encode()})


@pytest.mark.parametrize(
    ("spec", "text", "value"),
    [
        ("json.a:int64", "1234567890123456789", 1234567890123456789),
        ("json.a:int64", "-9223372036854775808", -(2**63)),
        ("json.a:int64", "9007199254740993.0", 2**53 + 1),
        ("json.a:int64", '"1234567890123456789"', 1234567890123456789),
        ("json.a:int32", "1e3", 1000),
        ("json.a:float64", "1e300", 1e300),
        ("json.a:float64", '"1.5"', 1.5),
        ("json.a:float32", "3.4028234e38", 3.4028234e38),
        ("json.a:float32", "Infinity", float("inf")),
        ("json.a:float32", "1e-60", 1e-60),
    ],
)
def test_numbers_are_kept_exactly(spec, text, value):
    assert read(spec, text) == (value, None)


@pytest.mark.parametrize(
    ("spec", "text", "cause"),
    [
        ("json.a:int64", "9223372036854775808", "out of range"),
        ("json.a:int32", "2147483648", "out of range"),
        ("json.a:int64", "1e999999999", "out of range"),
        ("json.a:int64", "1.5", "not whole"),
        ("json.a:int64", '"1_000"', "'1_000'"),
        ("json.a:int64", "true", "True"),
        ("json.a:float32", "1e300", "too large"),
        ("json.a:float64", "1e400", "over its range"),
        ("json.a:float64", "1" + "0" * 400, "too large"),
        ("json.a:float64", '"1_0"', "'1_0'"),
        ("json.a", '"so happy \\ud83d"', "surrogates not allowed"),
        ("json.a", "[" * 100_000, "nested too deeply"),
        ("json.a:int32", "[" * 5_000 + "]" * 5_000, "nested too deeply"),
        ("json.a:int64", "1" * 5000, "4300 digits"),
    ],
)
def test_what_a_column_cannot_hold_is_null_and_named(spec, text, cause):
    value, problem = read(spec, text)
    assert value is None and problem.startswith("json.a: not ") and cause in problem
    problem.encode()


@pytest.mark.parametrize(
    ("spec", "extension", "path", "before"),
    [
        ("caption.txt", "caption.txt", (), ("caption", ("txt",))),
        ("Caption.TXT", "caption.txt", (), ("caption", ("TXT",))),
        ("json.a.b", "json", ("a", "b"), ("json", ("a", "b"))),
        ("json.json", "json", ("json",), ("json", ("json",))),
        ("meta.json.Id:int64", "meta.json", ("Id",), ("meta", ("json", "Id"))),
        ("json", "json", (), ("json", ())),
        ("seg.png:string", "seg.png", (), ("seg", ("png",))),
    ],
)
def test_which_member_and_which_field(spec, extension, path, before):
    kept, old = keep.parse(spec), keep.parse(spec, exact=False)
    assert (kept.extension, kept.path) == (extension, path)
    assert (old.extension, old.path) == before


def test_an_archive_of_before_keeps_numbers_as_it_did():
    for text, kind, value in (("1234567890123456789", "int64", None), ("1e300", "float32", 1e300),
                              ("7", "int32", 7), ("1e400", "float64", float("inf"))):  # fmt: skip
        found = keep.parse(f"json.a:{kind}", exact=False).value(
            {"json": b'{"a": %s}' % text.encode()}
        )
        assert found[0] == value


@pytest.mark.parametrize("specs", [["json.id", "json.id:int64"], ["txt", "txt"], ["Txt", "txt"]])
def test_two_columns_of_one_name_are_refused(specs):
    with pytest.raises(ValueError, match=f"--keep {specs[0]} {specs[1]}: two columns"):
        keep.check_names(specs, exact=True)


def test_bytes_that_are_not_text_are_null_and_named():
    value, problem = keep.parse("txt").value({"txt": b"\xff\xfe"})
    assert value is None and "not string" in problem


@pytest.mark.parametrize("spec", ["codes", "key", "txt:blob", "", "a b"])
def test_specs_that_cannot_be_columns_are_refused(spec):
    with pytest.raises(ValueError, match="--keep"):
        keep.parse(spec)
