"""``python -m pqmim``: the command line.

Python looks for modules in the working folder first when it is started so, and a person's own
``torch.py`` or ``numpy.py`` there would be taken for the library.  The folder is taken off the
path, unless it is the one that holds this package.
"""

import os
import sys


def leave_out_the_working_folder() -> None:
    """Nothing of the working folder is imported from here on."""
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    first = sys.path[0] if sys.path else None
    if first is not None and os.path.realpath(first) == os.path.realpath(os.curdir) != home:
        del sys.path[0]


if __name__ == "__main__":
    leave_out_the_working_folder()
    from pqmim.cli import main

    sys.exit(main())
