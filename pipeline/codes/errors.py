"""What the readers refuse; each message names the object and the way out."""

from __future__ import annotations

from pipeline.archive.manifest import DatasetError


class MissingColumn(DatasetError):
    """The tables have no such column, or a filter has no such operator."""


class NoCodes(DatasetError):
    """The tables have bitstreams alone."""


class MissingValue(DatasetError):
    """A numeric column has a null."""


class StateMismatch(DatasetError):
    """A state is of another stream."""


class MixedGrids(DatasetError):
    """An image does not have the grid that was asked for."""


class TooFewImages(DatasetError):
    """Some rank would have no batch."""


class NotHere(DatasetError):
    """The DataLoader is made in a way that this stream cannot work with."""
