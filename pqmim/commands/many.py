"""Many files by one command: several at a time, on after a bad one, and what became of them.

    pqmim compress photos/*.png --output-dir small --threads 4

Each thread works on a picture of its own, with one PyTorch thread.  Two inputs whose outputs would
have the same name are refused before anything is written.
"""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pqmim.commands.files import STDIO, FileError, Output, naming
from pqmim.meter import Meter, tell

INCOMPLETE = 3  # exit code: some files were not made


@dataclass(frozen=True)
class Job:
    """One file to make."""

    input: str
    output: Output


def jobs_of(inputs: Sequence[str], folder: str, suffix: str, *, force: bool) -> list[Job]:
    """One job an input, of its name with another suffix in the folder, which is made.

    Raises:
        FileError: stdin, two inputs for one output, or a folder that cannot be made.
    """
    if not folder or (Path(folder).exists() and not Path(folder).is_dir()):
        raise FileError(f"--output-dir {folder or repr(folder)}: not the name of a folder")
    named: dict[str, list[str]] = collections.defaultdict(list)
    for name in inputs:
        if name == STDIO:
            raise FileError("standard input has no name, so --output-dir has none for its output")
        named[str(Path(folder, Path(name).stem + suffix))].append(name)
    for output, names in named.items():
        if len(names) > 1:
            raise FileError(f"{output}: the output of {' and of '.join(names)}? Rename one of them")
    with naming(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    return [Job(names[0], Output(output, force)) for output, names in named.items()]


def each(jobs: Sequence[Job], work: Callable[[Job], None], workers: int, meter: Meter) -> int:
    """Do all jobs; say which failed, each in a line, and how many.

    Args:
        jobs: what there is to do.
        work: makes one output, in one of several threads; a FileError is one file's.
        workers: how many threads.
        meter: progress.

    Returns:
        The exit code: 0, or 3 if a file was not made.
    """
    failed, threads = 0, torch.get_num_threads()
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    torch.set_num_threads(1)
    try:
        running = [pool.submit(work, job) for job in jobs]
        for done, future in enumerate(concurrent.futures.as_completed(running), 1):
            try:
                future.result()
            except FileError as error:
                failed += 1
                meter.error(f"pqmim: {error}")
            meter.show(done)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
        meter.close()
    if failed:
        tell(f"pqmim: {failed} of {len(jobs)} files were not made")
    return INCOMPLETE if failed else 0
