"""A process that runs a small job again and again, each time in a fork that may be killed.

The imports (PyTorch, seconds) are done once, before any thread is started, so that a fork is safe
and a run costs tenths of a second.  ``kill_at`` lists the forks that run at once, each with the
step at which it kills itself with SIGKILL, 0 for never.  A step is any call that the storage code
makes to something outside of it, before it and after it: ``os.link``, ``os.fsync``, ``file.write``,
an S3 request, ``json.loads``.  The interpreter's profile hook finds them, so that a call that is
added is a step that is added.  Steps are counted in the two back-ends, where the effects are; with
``wide`` in all modules of the protocol.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import pipeline
from pipeline import plan
from pipeline.archive import commit, layout, manifest, table
from pipeline.store import inputs, shard_names
from pipeline.store.storage import Store
from pipeline.work import encoder
from pipeline.work.replica import Replica
from pqmim.codec import Codec
from tests.models import tiny_bytes

_FOLDER = Path(pipeline.__file__).parent
BACK_ENDS = {str(_FOLDER / name) for name in ("store/local.py", "store/s3.py")}
PROTOCOL = BACK_ENDS | {
    str(_FOLDER / name) for name in ("archive/commit.py", "store/storage.py", "store/errors.py")
}
WEIGHTS = tiny_bytes()


def job(root: str, tars: list[str], conditional: bool = True) -> None:
    """What jobs.encode and jobs.finish do, in one process and without Ray."""
    codec = Codec.from_bytes(WEIGHTS)
    found = inputs.expand(tars)
    specs = [plan.ShardSpec(shard_names.shard_id(o.url), o.url, o.size, o.etag) for o in found]
    frozen = plan.Plan(
        model=codec.fingerprint, quality=3, stride=codec.config.stride, store="codes",
        codewords=codec.config.codewords, inputs=len(specs),
        inputs_digest=plan.listing_digest(specs),
    )  # fmt: skip
    store = Store(root, conditional)
    commit.begin(store, frozen)
    store.put_if_absent("inputs.parquet", table.write_listing(specs))
    store.put_if_absent(layout.model_name(frozen.model), WEIGHTS)
    done = commit.committed_ids(store)
    replica = Replica(codec, decode_threads=1)
    for spec in specs:
        if spec.shard_id not in done:
            encoder.encode_shard(spec, frozen, store, replica)
    results = commit.entries(store, (spec.shard_id for spec in specs))
    entries = manifest.describe(store, frozen, results)
    store.put(manifest.MANIFEST, manifest.write(entries, frozen))


class Killer:
    """Counts steps, and kills this process at one of them."""

    def __init__(self, kill_at: int, files: set[str]) -> None:
        self.left, self.files, self.steps = kill_at, files, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event in ("c_call", "c_return", "c_exception"):
            caller: FrameType | None = frame
        elif frame.f_code.co_filename in self.files:
            return  # a call from one of our own functions to another has no effect
        else:
            caller = frame.f_back
        if caller is not None and caller.f_code.co_filename in self.files:
            self.steps += 1
            if self.steps == self.left:
                os.kill(os.getpid(), signal.SIGKILL)


def child(request: dict[str, Any], kill_at: int, reply: int) -> None:
    """Run the job; the number of steps goes into the pipe ``reply``."""
    killer = Killer(kill_at, PROTOCOL if request["wide"] else BACK_ENDS)
    sys.setprofile(killer)
    try:
        job(request["root"], request["tars"], request["conditional"])
    finally:
        sys.setprofile(None)
    os.write(reply, b"%d" % killer.steps)


def warm_up() -> None:
    """What costs a second at its first use, as far as it starts no thread."""
    for module in ("aiobotocore.session", "fsspec", "PIL.Image", "s3fs", "simplejpeg"):
        importlib.import_module(module)
    codec = Codec.from_bytes(WEIGHTS)
    codec.encode(torch.zeros(1, 3, 48, 48, dtype=torch.uint8), 3)
    table.warm_up(plan.Plan("", 3, 16, 16, 0, "", store="codes"))


def serve() -> None:
    """A request a line on standard input, the end of each fork in a line on standard output."""
    warm_up()
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    mine = Path("/proc/self/comm").read_text().strip()
    assert threads <= {mine, "jemalloc_bg_thd"}, "a fork would copy the locks of other threads"
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        answers = [collect(*one) for one in [fork(request, n) for n in request["kill_at"]]]
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


def fork(request: dict[str, Any], kill_at: int) -> tuple[int, int]:
    """A process that runs the job, and the pipe for its answer."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            os.environ.update(request["environment"])
            child(request, kill_at, writer)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    return pid, reader


def collect(pid: int, reader: int) -> tuple[int, int]:
    """Exit code, negative for a signal; and the number of steps if the job came to its end."""
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(text or 0)


class Crashing:
    """The process, for a test."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.crashing"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_FOLDER.parent
        )

    def run(
        self, root: str, tars: list[str], *kill_at: int, wide: bool = False,
        conditional: bool = True,
    ) -> list[tuple[int, int]]:  # fmt: skip
        """Run one fork for each of ``kill_at`` at once; exit code and steps of each."""
        environment = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        request = {"root": root, "tars": tars, "kill_at": kill_at, "wide": wide,
                   "conditional": conditional, "environment": environment}  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return [tuple(one) for one in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=300)


if __name__ == "__main__":
    serve()
