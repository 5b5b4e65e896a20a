"""The file of prices: what machines, storage, requests and transfer cost, and what a run uses.

``infra/prices.example.yaml`` is one.  Every name and every type is checked: a price that is passed
over in silence would be a wrong total.
"""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Any

import yaml


class BadPrices(Exception):
    """A file of prices that is not one; says where and what is expected."""


@dataclass(frozen=True)
class Machine:
    """One kind of machine; the prices are for an hour of it."""

    on_demand: float
    spot: float = 0.0
    spot_lost_a_month: float = 0.0  # share of them
    replicas: int = 1  # on one of them
    start_s: float = 0.0  # from being asked for to the first shard


@dataclass(frozen=True)
class Class:
    """One class of storage."""

    gb_month: float
    put_1000: float  # and LIST
    get_1000: float
    retrieval_gb: float = 0.0
    minimum_days: int = 0  # paid for, however soon an object is deleted
    minimum_kb: int = 0  # paid for, however small it is


@dataclass(frozen=True)
class Run:
    """What a run uses of these."""

    machine: str
    spot: bool
    head: str
    originals: str  # the class of storage that the shards are in
    originals_age_days: int
    archive: str
    transfer: str  # between storage and machines


@dataclass(frozen=True)
class Prices:
    """Everything that the file says."""

    date: str
    region: str
    currency: str
    machines: dict[str, Machine]
    storage: dict[str, Class]
    transfer_gb: dict[str, float]
    run: Run

    @property
    def machine(self) -> Machine:
        """The one that replicas run on."""
        return self.machines[self.run.machine]

    @property
    def machine_hour(self) -> float:
        """Its price."""
        return self.machine.spot if self.run.spot else self.machine.on_demand

    @property
    def head_hour(self) -> float:
        """Price of the driver's machine, which is never a spot machine."""
        return self.machines[self.run.head].on_demand

    @property
    def originals(self) -> Class:
        """Where the shards are."""
        return self.storage[self.run.originals]

    @property
    def archive(self) -> Class:
        """Where the tables go."""
        return self.storage[self.run.archive]

    @property
    def transfer(self) -> float:
        """A GB from storage to the machines."""
        return self.transfer_gb[self.run.transfer]


def read(text: str, name: str) -> Prices:
    """The file's content, checked.

    Raises:
        BadPrices: names the file, the field, and what it should be.
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadPrices(f"{name}: not YAML: {error}") from error
    try:
        fields = _fields(found, {f.name for f in dataclasses.fields(Prices)}, "")
        prices = Prices(
            date=_text(fields["date"], "date"),
            region=_text(fields["region"], "region"),
            currency=_text(fields["currency"], "currency"),
            machines={k: _make(Machine, v, k) for k, v in _mapping(fields, "machines").items()},
            storage={k: _make(Class, v, k) for k, v in _mapping(fields, "storage").items()},
            transfer_gb={k: _number(v, k) for k, v in _mapping(fields, "transfer_gb").items()},
            run=_make(Run, fields["run"], "run"),
        )
        _check_names(prices)
    except BadPrices as error:
        raise BadPrices(f"{name}: {error}; infra/prices.example.yaml shows each field") from None
    return prices


def _check_names(prices: Prices) -> None:
    """What a run uses has a price."""
    run = prices.run
    for field, name, table in (
        ("machine", run.machine, prices.machines), ("head", run.head, prices.machines),
        ("originals", run.originals, prices.storage), ("archive", run.archive, prices.storage),
        ("transfer", run.transfer, prices.transfer_gb),
    ):  # fmt: skip
        if name not in table:
            raise BadPrices(f"run.{field}: {name!r} has no price, there is {', '.join(table)}")
    if run.spot and not prices.machine.spot:
        raise BadPrices(f"run.spot: {run.machine} has no price as a spot machine")


def _fields(found: Any, known: set[str], where: str) -> dict[str, Any]:
    """A mapping with these fields and no other."""
    if not isinstance(found, dict):
        raise BadPrices(f"{where or 'the file'}: must be a mapping")
    for name in found:
        if name not in known:
            raise BadPrices(f"{where + '.' if where else ''}{name}: no such field")
    if not where and (missing := known - set(found)):
        raise BadPrices(f"{min(missing)} is missing")
    return found


def _mapping(fields: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(fields[name], dict) or not fields[name]:
        raise BadPrices(f"{name}: must be a mapping of names to prices")
    return fields[name]


def _make(kind: type[Any], found: Any, where: str) -> Any:
    """A record of a mapping, each field by its type."""
    types = {f.name: (str(f.type), f.default) for f in dataclasses.fields(kind)}
    given = _fields(found, set(types), where)
    values: dict[str, Any] = {}
    for name, (type_name, default) in types.items():
        if name not in given:
            if default is dataclasses.MISSING:
                raise BadPrices(f"{where}.{name} is missing")
            continue
        values[name] = _value(given[name], type_name, f"{where}.{name}")
    return kind(**values)


def _value(value: Any, type_name: str, where: str) -> Any:
    if type_name == "str":
        return _text(value, where)
    if type_name == "bool":
        if not isinstance(value, bool):
            raise BadPrices(f"{where}: {value!r} must be true or false")
        return value
    number = _number(value, where)
    if type_name == "int" and number != int(number):
        raise BadPrices(f"{where}: {value!r} must be a whole number")
    return int(number) if type_name == "int" else number


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise BadPrices(f"{where}: {value!r} must be a number, 0 or more")
    return float(value)


def _text(value: Any, where: str) -> str:
    if isinstance(value, datetime.date):  # YAML's own idea of a date
        return value.isoformat()
    if not isinstance(value, str) or not value:
        raise BadPrices(f"{where}: {value!r} must be a word")
    return value
