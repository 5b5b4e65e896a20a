"""Entry points: ``pqmim jobs encode`` or ``python -m jobs.encode``, and its siblings, alone or
under ``ray job submit``.  A ``pipeline`` of somebody else's is named before it is imported from.
"""

from pathlib import Path

from pqmim.commands.jobs import clash

if (_error := clash(Path(__file__).resolve().parents[1], ["pipeline"])) is not None:
    raise ImportError(_error)
