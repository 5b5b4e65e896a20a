"""Rate-distortion of the shipped weights on a folder, with everything there is to compare with.

    python -m benchmarks.rd FOLDER [--output build/rd]

Runs ``pqmim eval`` with every installed codec and the published Kodak curves (which only speak of
Kodak), then the entropy table, and says on what machine.  Kodak takes about a quarter of an hour
on two cores.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import torch

from pqmim import cli


def main() -> int:
    """Measure, then say where."""
    parser = argparse.ArgumentParser("benchmarks.rd", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("build") / "rd")
    parser.add_argument("--weights", default="default", help="path or name (%(default)s)")
    parser.add_argument("--threads", type=int, help="of torch (its default)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    sys.stdout.write(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    common = ["eval", str(args.folder), "--weights", args.weights]
    code = cli.main([*common, "--published", "default", "--output", str(args.output)])
    return code or cli.main([*common, "--rates"])


if __name__ == "__main__":
    sys.exit(main())
