"""The Slurm script: run on stand-ins of Slurm's commands, once with a real Ray; its words count."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs import encode
from pipeline.archive import commit
from pipeline.store.storage import Store
from tests.conftest import free_ports
from tests.corpus import jpeg, make_tar
from tests.infra import tools
from tests.infra.spelling import INFRA, ROOT, unnoticed
from tests.models import tiny_bytes

SCRIPT = INFRA / "slurm" / "encode.sbatch"
TEXT = SCRIPT.read_text()
DIRECTIVES = {  # what sbatch's manual says of each: sbatch(1) of Slurm 23.11
    "job-name": "pqmim-encode", "nodes": "2", "exclusive": "", "ntasks-per-node": "1",
    "gpus-per-node": "4", "cpus-per-task": "28", "time": "24:00:00", "signal": "B:USR1@120",
    "requeue": "", "no-kill": "", "open-mode": "append", "output": "pqmim-%j.log",
}  # fmt: skip
SRUN = {"--nodes", "--ntasks", "--nodelist", "--exclude", "--no-kill", "--kill-on-bad-exit"}
NODE = "--num-cpus=28 --num-gpus=4 --object-store-memory=200000000 --block"
JOB = (
    "--device cuda --replicas 8 --cpus-per-replica 7 --decode-threads 6 --batch-pixels 4194304 "
    "--input a --output b"
)
PATHS = ["--input", "a", "--output", "b"]
CALLS = [  # of a run on two nodes
    "ray get-auth-token --generate 0",
    "ray health-check --address=n1:20007 0",
    "ray health-check --address=n1:20007 0",
    f"python -m jobs.encode {JOB} at n1:20007 token",
    "sleep 2",
    "srun --nodes=1 --ntasks=1 --nodelist=n1",
    f"ray start --head --port=20007 {NODE} 0",
    "srun --nodes=1 --ntasks=1 --exclude=n1 --no-kill --kill-on-bad-exit=0",
    f"ray start --address=n1:20007 {NODE} 0",
]
ENDINGS = [  # the signal that Slurm sends, the job's exit code, what is called then
    ("", "3", []), ("USR1", "130", ["scontrol requeue 7"]), ("USR1", "0", []), ("TERM", "130", []),
]  # fmt: skip
STUBS = {
    # Options, then the command that it runs on the nodes.
    "srun": 'o=(); while [[ $1 == -* ]]; do o+=("$1"); shift; done\n'
    'echo "srun ${o[*]}" >>"$CALLS"; exec "$@"',
    "scontrol": 'echo "scontrol $*" >>"$CALLS"',
    "sleep": 'echo "sleep $*" >>"$CALLS"; /bin/sleep 0.02',
    # The first question finds no head yet; a node stays until it is ended.
    "ray": 'echo "ray $* ${RAY_USAGE_STATS_ENABLED-?}" >>"$CALLS"\n'
    "case $1 in get-auth-token) ;; start) exec /bin/sleep 30 ;;\n"
    'health-check) [ "$(grep -c health-check "$CALLS")" -gt 1 ] ;; *) kill -KILL "$PPID" ;; esac',
    # The job, once every node has been asked for: ends by itself, or is told to, as the script is
    # by Slurm (SIGNAL), and then ends with ENDS.
    "python": "trap 'exit $ENDS' TERM\n"
    'echo "python $* at $RAY_ADDRESS $RAY_AUTH_MODE" >>"$CALLS"\n'
    'for _ in {1..500}; do [ "$(grep -c "^ray start" "$CALLS")" = 2 ] && break; /bin/sleep 0.01\n'
    "done\n"
    '[ -n "$SIGNAL" ] || exit "$ENDS"; kill "-$SIGNAL" "$PPID"\n'
    "for _ in {1..500}; do /bin/sleep 0.01; done",
}


def folder_with(folder: Path, stubs: dict[str, str]) -> Path:
    """A checkout whose environment has these commands."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name, text in stubs.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    return folder


def slurm(
    folder: Path, text: str, arguments: Sequence[str], timeout_s: float = 120, **variables: str
) -> tuple[int, list[str]]:
    """Exit code and calls of the script, with what Slurm tells it."""
    (folder / "encode.sbatch").write_text(text)
    calls = folder / "calls"
    calls.write_text("")
    kept = {"HOME": str(folder), "PATH": os.environ["PATH"], "CALLS": str(calls)}
    given = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURMD_NODENAME": "n1"}
    given |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "28"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "encode.sbatch", *arguments], cwd=folder, env=kept | given | variables,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout_s)
        finally:
            left = _kill_group(process.pid)
    strange = re.findall(r"command not found|unbound variable", (folder / "log").read_text())
    return code, [*calls.read_text().splitlines(), *left, *strange]


def _kill_group(group: int) -> list[str]:
    """What the script has left running, ended."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return []
    return ["something was left running"]


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    return folder_with(tmp_path, STUBS)


def problems(text: str, folder: Path, timeout_s: float = 120) -> list[str]:
    """sbatch's options, and what is called when nodes come, time ends, all is done."""
    asked = dict(re.findall(r"(?m)^#SBATCH --([a-z-]+)=?(.*)$", text))
    found = [] if asked == DIRECTIVES else [f"#SBATCH {asked}"]
    for signal_name, ends, more in ENDINGS:
        got, calls = slurm(folder, text, PATHS, timeout_s, SIGNAL=signal_name, ENDS=ends)
        if str(got) != ends or sorted(calls) != sorted([*CALLS, *more]):
            return [*found, f"{ends}: exit code {got}", *sorted(set(calls) ^ {*CALLS, *more})]
    return found


@pytest.mark.words
def test_it_is_right_and_each_of_its_words_counts(stand_ins: Path) -> None:
    lint = [tools.command("shellcheck"), str(SCRIPT)]
    assert subprocess.run(lint, capture_output=True, text=True, timeout=60).stdout == ""
    assert problems(TEXT, stand_ins) == []
    free = {"null", "#!/usr/bin/env bash", "euo"}  # -eou is the same
    # A script that waits for ever is noticed as well, and needs no patience.
    assert unnoticed(lambda text: problems(text, stand_ins, 2), TEXT, free, sample=50) == []


def test_a_head_that_does_not_come_up_ends_it(stand_ins: Path) -> None:
    folder_with(stand_ins, {"ray": "case $1 in get-auth-token) ;; *) exit 1 ;; esac"})
    code, calls = slurm(stand_ins, TEXT, [], SIGNAL="", ENDS="0")
    assert code != 0 and not any(call.startswith("python") for call in calls)


def test_the_options_of_srun_and_the_arguments_of_the_job_exist() -> None:
    called = [word.split("=")[0] for call in CALLS if call[:4] == "srun" for word in call.split()]
    assert set(called) == SRUN | {"srun"}
    flags = encode.parse(JOB.split())
    assert flags.replicas == 8 and flags.cpus_per_replica * 4 == 28


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_real_ray_encodes_on_what_the_script_starts(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One node without GPUs; every node of Slurm is this machine."""
    short = tempfile.TemporaryDirectory(prefix="ray")  # Ray's sockets in it have a limit
    request.addfinalizer(short.cleanup)
    checkout = folder_with(tmp_path / "checkout", {"srun": STUBS["srun"]})
    for name in ("jobs", "pipeline", "pqmim"):
        (checkout / name).symlink_to(ROOT / name)
    port = free_ports(4)
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(2):
        tar = make_tar([("a.jpg", jpeg(64, 64)), ("b.jpg", jpeg(64, 64))])
        (shards / f"{number}.tar").write_bytes(tar)
    (tmp_path / "tiny.safetensors").write_bytes(tiny_bytes())
    loopback = f"--node-ip-address=127.0.0.2 --include-dashboard=false --temp-dir={short.name}"
    loopback += f" --port={port} --dashboard-agent-listen-port={port + 1}"
    loopback += f" --ray-client-server-port={port + 2}"
    real = Path(sys.executable).with_name("ray")
    folder_with(checkout, {
        "python": f'exec {sys.executable} "$@"',
        "ray": f'[ "$1" = start ] && set -- "$@" {loopback}\n'
        f'exec {real} "${{@/127.0.0.2:20007/127.0.0.2:{port}}}"',
    })  # fmt: skip
    text = TEXT.replace("20000 + SLURM_JOB_ID % 10000", str(port))
    arguments = ["--input", str(shards), "--output", str(tmp_path / "archive"), "--device",
                 "cpu", "--weights", str(tmp_path / "tiny.safetensors"), "--store", "codes",
                 "--quality", "3", "--gpus-per-replica", "0"]  # fmt: skip
    variables = {"SLURM_NNODES": "1", "SLURMD_NODENAME": "127.0.0.2", "SLURM_GPUS_ON_NODE": "1"}
    variables |= {"SLURM_CPUS_PER_TASK": "1", "OMP_NUM_THREADS": "1"}
    code, _ = slurm(checkout, text, arguments, timeout_s=600, **variables)
    assert code == 0, (checkout / "log").read_text()
    assert len(commit.committed_ids(Store(str(tmp_path / "archive")))) == 2
