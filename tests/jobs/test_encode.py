"""The whole job: plan, replicas, commit, resume, and its refusals; on Ray and without it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import common, decode, encode, finish, verify
from pipeline.store.storage import Store
from tests.corpus import jpeg, make_tar
from tests.models import tiny_bytes
from tests.photos import SHARDS

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(tiny_bytes(prior=True))
    return str(path)


def flags(model: str, source: str, output: str, *more: str) -> list[str]:
    return ["--input", source, "--output", output, "--weights", model, "--quality", "3",
            "--device", "cpu", "--max-bad-images", "1", *more]  # fmt: skip


def run(model: str, source: str, output: str, *more: str) -> int:
    """One replica unless told otherwise, and so a process of this machine."""
    return common.run(lambda: encode.main(flags(model, source, output, *more)))


def tables(output: str) -> dict[str, bytes]:
    store = Store(output)
    return {name: store.get(name) for name in store.names("codes/")}


def summary(output: str) -> dict:
    store = Store(output)
    return json.loads(store.get(max(n for n in store.names("runs/") if "summary" in n)))


@pytest.mark.ray
def test_one_and_two_replicas_with_ray_and_without_write_the_same_bytes(ray_here, model, tmp_path):
    ways = {"one": [], "ray": ["--replicas", "2"], "local": ["--replicas", "2", "--local"]}
    for name, more in ways.items():
        assert run(model, str(SHARDS[0].parent), str(tmp_path / name), *more) == common.OK
    whole = tables(str(tmp_path / "one"))
    assert len(whole) == 2
    assert whole == tables(str(tmp_path / "ray")) == tables(str(tmp_path / "local"))


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None  # to import it is an error
from jobs import common, encode
sys.exit(common.run(lambda: encode.main(sys.argv[1:])))
"""


@pytest.mark.long
def test_without_ray_installed_the_job_runs_on_this_machine(model, tmp_path):
    given = flags(model, str(SHARDS[0]), str(tmp_path / "out"), "--replicas", "2")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)

    def job(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_RAY, *given, *more]
        return subprocess.run(command, env=environment, text=True, capture_output=True)

    done = job("--local")
    assert done.returncode == common.OK, done.stderr
    assert "1 of 1 shards committed" in done.stdout
    shutil.rmtree(tmp_path / "out")
    done = job()
    assert done.returncode == common.USAGE and "Ray is not here" in done.stderr
    assert "--local" in done.stderr


def test_ctrl_c_ends_the_replicas_and_the_same_command_resumes(here, model, tmp_path):
    tar = make_tar([(f"{i}.jpg", jpeg(32, 32, seed=i)) for i in range(2)])
    for n in range(400):
        (tmp_path / f"s{n:03}.tar").write_bytes(tar)
    source, output = str(tmp_path / "s*.tar"), str(tmp_path / "out")
    command = [sys.executable, "-m", "jobs.encode", *flags(model, source, output)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with subprocess.Popen(
        command, env={**environment, "PYTHONPATH": str(ROOT)}, text=True,
        start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    ) as job:  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while not list(Path(output).glob("ledger/*")):
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does: to all that are in its group
        _, log = job.communicate(timeout=PATIENCE_S)  # and so no replica holds the pipe any more
    assert job.returncode == common.INTERRUPTED, log
    assert "run the same command again" in log and "Traceback" not in log
    assert summary(output)["state"] == "interrupted" and len(tables(output)) < 400
    assert run(model, source, output) == common.OK
    assert len(tables(output)) == 400


def test_the_same_command_resumes_and_encodes_nothing_twice(here, model, tmp_path):
    for number in range(4):
        tar = make_tar([(f"{number}-{i}.jpg", jpeg(32, 32, seed=i)) for i in range(3)])
        (tmp_path / f"s{number}.tar").write_bytes(tar)
    source, output = str(tmp_path / "s{0..3}.tar"), str(tmp_path / "out")
    assert run(model, source, output) == common.OK
    whole = tables(output)
    for kind in ("codes", "ledger"):
        name = next(n for n in Store(output).names(f"{kind}/") if "s2" in n)
        (Path(output) / name).unlink()
    name = next(n for n in Store(output).names("ledger/") if "s1" in n)
    (Path(output) / name).unlink()
    assert run(model, source, output) == common.OK
    assert tables(output) == whole
    report = summary(output)
    assert (report["shards_encoded"], report["shards_done"]) == (1, 4)
    assert run(model, source, output) == common.OK
    assert summary(output)["shards_encoded"] == 0


@pytest.mark.long
@pytest.mark.ray
def test_a_whole_archive_on_s3(ray_here, s3, model, tmp_path, request):
    store = Store(f"{s3}/in")
    for shard in SHARDS:
        store.put(shard.name, shard.read_bytes())
    source, output = f"{s3}/in/photos-*.tar", f"{s3}/archive"
    assert run(model, source, output, "--replicas", "2", "--keep", "txt") == common.OK
    assert finish.main(["--archive", output]) == common.OK
    assert verify.main(["--archive", output, "--device", "cpu", "--min-psnr", "0"]) == common.OK
    target = f"{s3}/decoded"
    arguments = ["--archive", output, "--output", target, "--format", "png", "--device", "cpu"]
    assert decode.main(arguments) == common.OK
    assert sum(name.endswith(".png") for name in Store(target).names("")) == 57
    request.getfixturevalue("here")
    run(model, str(SHARDS[0].parent), str(tmp_path / "local"), "--keep", "txt")
    mine, theirs = tables(str(tmp_path / "local")), tables(output)
    assert [len(t) for t in mine.values()] == pytest.approx(
        [len(t) for t in theirs.values()], abs=99
    )


def test_a_damaged_shard_is_kept_and_reported(here, model, tmp_path, capsys):
    whole = make_tar([(f"{i}.jpg", jpeg(32, 32, seed=i)) for i in range(8)])
    (tmp_path / "cut.tar").write_bytes(whole[:4000])
    (tmp_path / "good.tar").write_bytes(whole)
    assert run(model, str(tmp_path / "*.tar"), str(tmp_path / "out")) == common.INCOMPLETE
    assert "damaged: " in capsys.readouterr().out
    assert len(tables(str(tmp_path / "out"))) == 2


def test_a_wrong_image_key_stops_the_run_with_the_way_out(here, model, tmp_path, capsys):
    tar = make_tar([(f"{i}.jpeg2", b"x") for i in range(150)])
    (tmp_path / "in.tar").write_bytes(tar)
    code = run(model, str(tmp_path / "in.tar"), str(tmp_path / "out"), "--max-bad-images", "0.05")
    assert code == common.INCOMPLETE
    assert "--image-key" in capsys.readouterr().out


def refusal(capsys, code: int) -> str:
    assert code == common.USAGE
    return capsys.readouterr().err


def test_another_plan_is_refused_and_named(here, model, tmp_path, capsys):
    shutil.copy(SHARDS[0], tmp_path / "in.tar")
    source, output = str(tmp_path / "in.tar"), str(tmp_path / "out")
    assert run(model, source, output) == common.OK
    error = refusal(capsys, run(model, source, output, "--resize", "64"))
    assert "resize: 64, there None" in error and "choose another output" in error
    shutil.copy(SHARDS[1], tmp_path / "in2.tar")
    error = refusal(capsys, run(model, str(tmp_path / "in*.tar"), output))
    assert "inputs: 2, there 1" in error


def test_bad_arguments_are_found_out_before_any_work(model, tmp_path, capsys):
    source = str(SHARDS[0])
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cases = {
        str(tmp_path / "no-such-{0..3}.tar"): (str(tmp_path / "a"), [], "no-such-0.tar"),
        source: (str(blocked), [], "file"),
        source + " ": (str(tmp_path / "b"), [], "photos-000000.tar "),
    }
    for given, (output, more, message) in cases.items():
        assert message in refusal(capsys, run(model, given, output, *more))
    for more, message in [
        (["--quality", "9"], "this model has 1..4"),
        (["--keep", "codes"], "column 'codes' of its own"),
        (["--replicas", "0"], "1 or more"),
        (["--weights", "nonsense"], "no weights 'nonsense'"),
    ]:
        assert message in refusal(capsys, run(model, source, str(tmp_path / "c"), *more))
    assert not list(Store(str(tmp_path / "c")).names("codes/"))


def test_bitstreams_need_an_entropy_model_and_codes_do_not(here, tmp_path, capsys):
    path = tmp_path / "plain.safetensors"
    path.write_bytes(tiny_bytes())
    (tmp_path / "in.tar").write_bytes(make_tar([("a.jpg", jpeg(32, 32))]))
    source, output = str(tmp_path / "in.tar"), str(tmp_path / "out")
    for store in ([], ["--store", "both"]):
        error = refusal(capsys, run(str(path), source, output, *store))
        assert "has no entropy model" in error and "--store codes" in error
    assert not Path(output).exists() or not tables(output)
    assert run(str(path), source, output, "--store", "codes") == common.OK


@pytest.mark.ray
def test_a_machine_without_gpu_is_told_so(ray_here, model, tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for replicas in ("1", "2"):  # without Ray, and with it
        more = ["--device", "cuda", "--replicas", replicas]
        error = refusal(capsys, run(model, str(SHARDS[0]), str(tmp_path / "o"), *more))
        assert "--device cpu" in error
