"""``jobs.train``: on an archive's codes, alone and with Ray Train; what it refuses."""

from __future__ import annotations

import dataclasses
import json
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jobs import common, train
from pipeline.archive import layout
from pipeline.archive.manifest import DatasetError
from pipeline.codes.stream import CodeStream
from pipeline.learn import learner
from pipeline.learn.learner import Reservoir
from pipeline.plan import Status
from pqmim import checkpoint
from pqmim.codec import Codec
from pqmim.prior import load
from pqmim.training import prior_run
from tests import code_archives
from tests.models import TINY_PRIOR, tiny_bytes, tiny_prior

IMAGES = 60


def smooth(row, number):
    """Codes that are easy to predict: a ramp whose start is the image's own."""
    if row.status is not Status.OK:
        return row
    y, x, m = np.indices((row.grid_h, row.grid_w, 4))
    codes = ((number + y + x + 4 * m) % 16).astype(np.uint8).tobytes()
    return dataclasses.replace(row, codes=codes, crc32=zlib.crc32(codes))


def archive(root: Path, weights: bytes, **changes: object) -> Path:
    """Codes of a tiny model with 4 sub-codes of 16 codewords."""
    codec = Codec.from_bytes(weights)
    made = code_archives.make(
        str(root), [IMAGES // 2] * 2, [(9, 7)], smooth,
        **{"model": codec.fingerprint, "quality": 4, "codewords": 16, **changes},
    )  # fmt: skip
    made.store.put_if_absent(layout.model_name(codec.fingerprint), weights)
    return root


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    return archive(tmp_path / "codes", tiny_bytes(prior=True))


@pytest.fixture
def own_time(monkeypatch):
    """Budgets in seconds of this process, however busy the machine is."""
    monkeypatch.setattr(prior_run, "time", SimpleNamespace(perf_counter=time.process_time))


def run(codes: Path, out: Path, *more: str, minutes: float = 0.02) -> int:
    arguments = ["--recipe", "prior", "--archive", str(codes), "--output", str(out),
                 "--minutes", str(minutes), "--device", "cpu", *more]  # fmt: skip
    return common.run(lambda: train.main(arguments))


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights_of(out: Path) -> checkpoint.Weights:
    path = max(out.glob("*.safetensors"), key=lambda p: p.stat().st_mtime)
    return checkpoint.parse(path.read_bytes(), str(path))


def test_a_run_goes_on_from_the_archives_model_and_resumes(own_time, codes, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(codes, out) == common.OK
    assert Path(capsys.readouterr().out.strip()).parent == out
    first, found = lines(out), weights_of(out)
    assert first[0]["step"] == 0 and first[-1]["step"] > 3
    assert first[-1]["bits_per_code"] < first[0]["bits_per_code"]
    given = checkpoint.parse(tiny_bytes(prior=True), "given")
    assert found.prior.model_id != given.prior.model_id
    for name, tensor in given.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)

    assert run(codes, out, minutes=0.03) == common.OK
    second = lines(out)[len(first) :]
    assert second[0]["step"] == first[-1]["step"] and second[-1]["step"] > second[0]["step"]
    assert second[0]["bits_per_code"] == first[-1]["bits_per_code"]
    assert run(codes, out, "--start-from", "scratch") == common.USAGE
    assert "choose another --out" in capsys.readouterr().err


def test_the_first_held_out_figure_is_that_of_the_model_itself(codes, tmp_path):
    from pqmim.coding import payloads

    task = learner.Task(str(codes), str(tmp_path / "run"), "shipped", 0.0)
    given = load.load(tiny_prior(), torch.device("cpu"))
    held = list(learner._first_images(task).values())
    bits = payloads.bits_per_code(given, held, learner.PriorRecipe().plan)
    learner.learn(task)
    found = lines(tmp_path / "run")
    assert found[0]["bits_per_code"] == pytest.approx(sum(bits) / len(bits), abs=1e-4)
    assert weights_of(tmp_path / "run").prior.model_id == tiny_prior().model_id  # no step


def test_from_scratch_an_archive_without_an_entropy_model_gets_one(tmp_path, monkeypatch, capsys):
    bare = archive(tmp_path / "bare", tiny_bytes())
    assert run(bare, tmp_path / "run") == common.USAGE
    assert "--start-from scratch" in capsys.readouterr().err
    monkeypatch.setattr(learner, "PriorConfig", lambda subcodes, codewords: TINY_PRIOR)
    assert run(bare, tmp_path / "run", "--start-from", "scratch", "--where", "json.label=3") == 0
    codec = Codec.from_bytes(next((tmp_path / "run").glob("*.safetensors")).read_bytes())
    assert codec.prior.config == TINY_PRIOR


@pytest.mark.ray
@pytest.mark.long
def test_two_workers_train_one_model(ray_here, codes, tmp_path, capfd):
    pytest.importorskip("ray.train.torch")
    out = tmp_path / "run"
    assert run(codes, out, "--workers", "2", minutes=0.05) == common.OK
    found = lines(out)
    assert [line["step"] for line in found[:1]] == [0]  # one log
    assert found[-1]["bits_per_code"] < found[0]["bits_per_code"]
    assert weights_of(out).prior is not None


def work(rank: int, port: int, out: str) -> None:
    """One of two workers, without Ray: five steps on batches of its own."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    recipe = learner.PriorRecipe(model=TINY_PRIOR, minutes=1.0, batch=4)
    book, lengths = torch.zeros(4, 16, 2), torch.full((4, 16), 4.0)
    cpu, rng = torch.device("cpu"), np.random.default_rng(rank)
    trainer = prior_run.begin(recipe, Path(out), cpu, book, lengths, None)
    images = [rng.integers(0, 16, (9, 9, 4)).astype(np.uint8) for _ in range(3)]
    stream = prior_run._batches(trainer, images)
    for _ in range(5):
        trainer.seconds = prior_run.agree(float(rank + 1))
        trainer.train_step(next(stream))
    torch.save([p.detach() for p in trainer.model.parameters()], f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_workers_hold_the_same_weights_after_different_batches(tmp_path):
    from tests.conftest import free_ports

    context = torch.multiprocessing.get_context("spawn")
    port = free_ports(1)
    both = [context.Process(target=work, args=(r, port, str(tmp_path))) for r in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(500)
        assert one.exitcode == 0
    first, second = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_reservoir_that_is_too_small_exchanges_images(codes):
    stream = CodeStream(str(codes), batch_size=8)
    whole = Reservoir(stream, ())
    images = np.bincount([int(grid[0, 0, 0]) for grid in whole._grids], minlength=16)
    small = Reservoir(stream, ("000000",), buffer_bytes=5 * whole[0].nbytes)
    assert len(small) == 5 and len(whole) == images.sum() > 40
    seen = [int(small[i % 5][0, 0, 0]) for i in range(3 * len(whole))]
    assert abs(np.bincount(seen, minlength=16) - 3 * images).max() <= 5  # of 3 to 4 images each


def test_what_cannot_be_trained_on_is_refused_before_any_work(tmp_path, capsys):
    weights, out = tiny_bytes(prior=True), tmp_path / "run"
    coarse = archive(tmp_path / "coarse", weights, quality=3)
    assert run(coarse, out) == common.USAGE
    assert "--quality 4" in capsys.readouterr().err
    unfinished = archive(tmp_path / "unfinished", weights)
    (unfinished / "manifest.parquet").unlink()
    assert run(unfinished, out) == common.USAGE
    assert "jobs.finish" in capsys.readouterr().err
    whole = archive(tmp_path / "whole", weights)
    for where, reason in [
        ("json.label=x", "of int32"),
        ("label", "COLUMN=VALUE"),
        ("class=3", "no column 'class'"),
        ("json.label=77", "no image passes"),
    ]:
        assert run(whole, out, "--where", where) == common.USAGE
        assert reason in capsys.readouterr().err
    with pytest.raises(DatasetError, match="jobs.transcode"):
        bitstreams = archive(tmp_path / "bits", weights, store="bitstream")
        learner.learn(learner.Task(str(bitstreams), str(out), "shipped", 1.0))
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_photographs_go_to_the_loop_of_pqmim_train(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("pqmim.cli.main", lambda argv: asked.append(argv) or 0)
    arguments = [
        "--recipe",
        "autoencoder",
        "--input",
        "x/*.tar",
        "--output",
        "run",
        "--device",
        "cpu",
    ]
    assert train.main([*arguments, "--minutes", "5"]) == common.OK
    assert asked == [["train", "autoencoder", "--input", "x/*.tar", "--output", "run", "--device",
                      "cpu", "--threads", "1", "--minutes", "5.0"]]  # fmt: skip
    with pytest.raises(SystemExit):
        train.main([*arguments, "--workers", "2"])
