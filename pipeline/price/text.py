"""A bill for a person: low, likely, high, and what being wrong costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pipeline.price.bill import WRONG, Bill, Job, Measured, bill
from pipeline.price.prices import Prices

STORES = {"bitstream": "bitstreams", "codes": "codes", "both": "both"}


def text(job: Job, measured: Sequence[Measured], prices: Prices) -> str:
    """The table; ``measured`` has the shard that is taken for typical in its middle."""
    bills = [bill(job, one, prices) for one in measured]
    likely = len(bills) // 2
    machine = f"{prices.run.machine}, {'spot' if prices.run.spot else 'on demand'}"

    def line(name: str, of: Callable[[Bill], float], form: Callable[[float], str]) -> str:
        values = [of(one) for one in bills]
        three = (min(values), values[likely], max(values))
        return f"{name:34}" + "".join(f"{form(value):>14}" for value in three)

    def stored(store: str) -> str:
        return line(f"  of tables with {STORES[store]}", lambda b: b.after[store], _money)

    stores = [store for store in STORES if store in measured[likely].tables]
    return "\n".join([
        f"Prices of {prices.date}, {prices.region}, in {prices.currency}, by "
        f"{len(measured)} measured shard{'s' if len(measured) > 1 else ''}",
        f"{'':34}{'low':>14}{'likely':>14}{'high':>14}",
        line(f"machine hours ({machine})", lambda b: b.machine_hours, _money),
        line("hours on the clock", lambda b: b.wall_hours, _money),
        line("encoding, with the head", lambda b: b.encode, _money),
        line("requests, retrieval, transfer", lambda b: b.read, _money),
        line("verification (--full)", lambda b: b.verify, _money),
        line("deleting originals early", lambda b: b.early, _money),
        line("once, in all", lambda b: b.once, _money),
        line("a month of storage: originals", lambda b: b.before, _money),
        *map(stored, stores),
        line("decoding everything once", lambda b: b.decode, _money),
        line("months to break even", lambda b: b.months, _months),
        *wrong(job, measured[likely], prices),
    ])  # fmt: skip


def wrong(job: Job, measured: Measured, prices: Prices) -> list[str]:
    """What it costs if the forecast is wrong."""
    right = bill(job, measured, prices)
    slow = bill(job, measured, prices, slower=1 / (1 - WRONG))
    large = bill(job, measured, prices, larger=1 + WRONG)
    more = large.after[job.store] - right.after[job.store]
    return [
        f"A fifth slower: {_money(slow.once - right.once)} more, {_months(slow.months)} months to "
        f"break even.  Tables a fifth larger: {_money(more)} more a month, "
        f"{_months(large.months)} months."
    ]


def _money(value: float) -> str:
    """Two digits after the point below 100, none above."""
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _months(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:,.1f}"
