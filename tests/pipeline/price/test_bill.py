"""What a job costs: by hand on round numbers, the whole text by heart, prices that are wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.plan import ShardSpec
from pipeline.price import prices, text
from pipeline.price.bill import Bill, Job, Measured, bill, hours

EXAMPLE = Path(__file__).parents[3] / "infra" / "prices.example.yaml"
GOLDEN = Path(__file__).with_name("bill.txt")
ROUND = """
date: 2026-01-01
region: here
currency: EUR
machines:
  big: {on_demand: 4.0, spot: 1.0, spot_lost_a_month: 0.73, replicas: 2, start_s: 360}
  small: {on_demand: 0.5}
storage:
  warm: {gb_month: 0.02, put_1000: 0.01, get_1000: 0.001, minimum_days: 304}
  cold: {gb_month: 0.01, put_1000: 0.1, get_1000: 0.01, retrieval_gb: 0.1, minimum_kb: 500000}
transfer_gb: {none: 0.0, far: 0.05}
run: {machine: big, spot: false, head: small,
      originals: warm, originals_age_days: 0, archive: warm, transfer: none}
"""
# 1,000 shards of 10^9 bytes; a tenth of one was measured: 360 s to encode, of them 36 for decoding
# pictures, 144 to decode; tables of a hundredth and of a tenth.
JOB = Job((10**9,) * 1000, 8, "bitstream")
TABLES = {"bitstream": 10**6, "codes": 10**7, "both": 11 * 10**6}
MEASURED = Measured("s3://b/a.tar", 10**8, 360.0, 36.0, 144.0, TABLES)


def by(**changes: object) -> Bill:
    """The bill with other choices of the run."""
    known = prices.read(ROUND, "round")
    return bill(JOB, MEASURED, replace(known, run=replace(known.run, **changes)))  # type: ignore[arg-type]


def test_a_bill_by_hand() -> None:
    found = by()
    # 3,600 s a shard, 1,000 hours of a replica, 500 of machines; 4 machines start (0.1 h) and each
    # waits for one shard at the end (1 h).
    assert found.machine_hours == pytest.approx(500 + 4 * 1.1)
    assert found.wall_hours == pytest.approx(504.4 / 4)
    assert found.encode == pytest.approx(504.4 * 4 + 504.4 / 4 * 0.5)
    # 60 GET a shard; a GET and two PUT for its table
    assert found.read == pytest.approx(60 * 0.001 + 0.001 + 2 * 0.01)
    assert found.before == pytest.approx(1000 * 0.02)
    assert found.after == pytest.approx({"bitstream": 0.2, "codes": 2.0, "both": 2.2})
    # half the time of encoding, and both read
    assert found.verify == pytest.approx((250 + 4 * 0.6) * 4.125 + 0.06 + 0.001)
    assert found.decode == pytest.approx((200 + 4 * 0.5) * 4.125 + 0.001)
    assert found.early == pytest.approx(10 * 20)  # ten months of 30.4 days are still owed
    assert found.once == found.encode + found.read + found.verify + found.early
    assert found.months == pytest.approx(found.once / 19.8)


def test_what_choices_cost() -> None:
    assert by(originals_age_days=304).early == 0
    assert by(transfer="far").read == pytest.approx(by().read + 1000 * 0.05)
    assert by(originals="cold").read == pytest.approx(60 * 0.01 + 0.021 + 1000 * 0.1)
    cold = by(archive="cold")
    assert cold.after["bitstream"] == pytest.approx(1000 * 0.5 * 0.01)  # 10 MB count as 500
    spot = by(spot=True)
    # 0.5 machines are lost; each starts again and does one shard again
    assert spot.machine_hours == pytest.approx(by().machine_hours + 0.5 * 1.1)
    assert spot.encode < by().encode / 3


def test_what_never_pays() -> None:
    large = Measured("", 10**8, 1.0, 0.0, 1.0, {"bitstream": 2 * 10**8})
    assert math.isinf(bill(JOB, large, prices.read(ROUND, "round")).months)


def test_time_goes_up_with_being_slower_and_storage_with_being_larger() -> None:
    known = prices.read(ROUND, "round")
    right = bill(JOB, MEASURED, known)
    slow, large = bill(JOB, MEASURED, known, slower=1.25), bill(JOB, MEASURED, known, larger=1.2)
    assert slow.machine_hours == pytest.approx(right.machine_hours + 125 + 4 * 0.25)
    assert large.after["codes"] == pytest.approx(1.2 * right.after["codes"])
    assert large.encode == right.encode and slow.after == right.after


def test_the_text_is_the_golden_one() -> None:
    """By the example file; after a change that is meant, copy what is printed over it."""
    specs = [ShardSpec(str(n), f"{n}.tar", (n + 1) * 10**8, "") for n in range(10_000)]
    measured = [
        Measured("0.tar", 10**8, 9.0, 2.0, 5.0, TABLES),
        Measured("5000.tar", 10**8, 10.0, 2.0, 6.0, TABLES),
        Measured("9999.tar", 10**8, 13.0, 2.5, 7.0, {k: v * 2 for k, v in TABLES.items()}),
    ]
    known = prices.read(EXAMPLE.read_text(), "example")
    found = text.text(Job.of(specs, 64, "bitstream"), measured, known) + "\n"
    assert found == GOLDEN.read_text(), found


def test_hours_of_nothing_but_a_start() -> None:
    known = prices.read(ROUND, "round")
    assert hours(Job((1,), 2, "codes"), 0.0, known) == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("spot_lost_a_month", "spot_lost", r"x\.yaml: big\.spot_lost: no such field"),
        ("replicas: 2", "replicas: 2.5", "big.replicas: 2.5 must be a whole number"),
        ("on_demand: 4.0, ", "", "big.on_demand is missing"),
        ("region: here\n", "", "region is missing"),
        ("spot: false", "spot: maybe", "run.spot: 'maybe' must be true or false"),
        ("machine: big", "machine: huge", "run.machine: 'huge' has no price, there is big, small"),
        ("far: 0.05", "far: -1", "far: -1 must be a number, 0 or more"),
        ("currency: EUR", "currency: 3", "currency: 3 must be a word"),
        ("transfer_gb: {none: 0.0, far: 0.05}", "transfer_gb: 0", "must be a mapping of names"),
        ("machine: big, spot: false", "machine: small, spot: true", "no price as a spot machine"),
        ("date: ", "date: [", "not YAML"),
        ("region: here", "regoin: here", "regoin: no such field; infra/prices.example.yaml"),
    ],
)
def test_a_file_that_is_wrong_says_where(old: str, new: str, says: str) -> None:
    assert old in ROUND
    with pytest.raises(prices.BadPrices, match=says):
        prices.read(ROUND.replace(old, new), "x.yaml")
    with pytest.raises(prices.BadPrices, match="the file: must be a mapping"):
        prices.read("[]", "x.yaml")
