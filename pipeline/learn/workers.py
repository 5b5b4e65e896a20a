"""Several training workers under Ray Train, one process each.

Ray Train places them, joins them into one ``torch.distributed`` group (gloo on CPUs, NCCL on GPUs)
and, when one is lost, starts all again, which go on from the run's checkpoint.  It is asked for
nothing else: data, checkpoints and log are the run's own (``pipeline.learn.learner``).

Costs half a minute to start; needs the extra ``pqmim[train]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.learn.learner import Task, learn

RESTARTS = 3  # of all workers, after one is lost


class WorkersFailed(Exception):
    """The workers could not finish."""


def train(task: Task, workers: int) -> Path:
    """Run :func:`pipeline.learn.learner.learn` in so many workers; the weights file.

    Raises:
        WorkersFailed: what Ray says of it.
    """
    on_gpu = task.device.startswith("cuda")
    out = Path(task.out)
    trainer: Any = TorchTrainer(
        _work,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=on_gpu, resources_per_worker={"CPU": task.threads}
        ),
        run_config=RunConfig(
            name="ray", storage_path=str(out), failure_config=FailureConfig(max_failures=RESTARTS)
        ),
    )
    try:
        trainer.fit()
    except RuntimeError as error:  # ray.train.TrainingFailedError is one
        raise WorkersFailed(f"{task.out}: {' '.join(str(error).split())[:600]}") from error
    return max(out.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)


def _work(config: dict[str, Task]) -> None:
    """What each worker does."""
    learn(config["task"])
