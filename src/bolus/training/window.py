"""What happened since the last line of metrics: losses, anchors, speed, data wait; and objectives without a loss."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bolus.data.batches.loading import Fetched
from bolus.errors import NonFiniteLossError
from bolus.run import Run
from bolus.training.checkpoint import last_checkpoint
from bolus.training.health.health import HealthFinding


@dataclass
class Window:
    """What happened since the last line of metrics."""

    losses: list[dict[str, Tensor]] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)  # of the gradient of each step
    counts: dict[str, dict[str, int | Tensor]] = field(default_factory=dict)
    samples: int = 0
    patients: int = 0
    wait: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def add(self, fetched: Fetched, losses: dict[str, Tensor], counts: dict[str, dict[str, int | Tensor]]) -> None:
        """Count one batch."""
        self.losses.append(losses)
        self.samples += len(fetched.local)
        self.patients += fetched.patients
        self.wait += fetched.wait
        for name, found in counts.items():
            total = self.counts.setdefault(name, {})
            for what, count in found.items():
                total[what] = total.get(what, 0) + count

    def require_finite(self, step: int, run: Run, *, gradients: bool = True) -> None:
        """Raise NonFiniteLossError where a loss, or the norm of a gradient, is NaN or infinite.

        What it names is the first, since all that comes after follows from it.

        Args:
            step: the last one of the window.
            run: whose last checkpoint is named.
            gradients: whether their norms are looked at, too; those of fp16 may overflow.
        """
        way_out = "Lower optimizer.lr, set training.clip, or use training.precision=bf16."
        batches = len(self.losses) // max(1, len(self.norms))  # of a step
        for place, norm in enumerate(self.norms):
            number = step - (len(self.norms) - 1 - place)
            for losses in self.losses[place * batches : (place + 1) * batches]:
                bad = sorted(name for name, loss in losses.items() if not loss.isfinite())
                if bad:
                    what = f"objective {', '.join(map(repr, bad))} became NaN or infinite at step {number}"
                    raise NonFiniteLossError(f"{what}; {_kept(run)}. {way_out}")
            if gradients and not norm.isfinite():
                raise NonFiniteLossError(f"the gradient is not finite at step {number}; {_kept(run)}. {way_out}")

    def require_applied(self, step: int, skipped: int, scale: float, run: Run) -> None:
        """Raise NonFiniteLossError where fp16 left out every step of the window, and a lower scale was no cure.

        A few steps are left out while the scale is found. A scale below 1 makes gradients smaller than they are.

        Args:
            step: the last one of the window.
            skipped: steps in a row that were left out, until this one.
            scale: what losses are multiplied with.
            run: whose last checkpoint is named.
        """
        if scale < 1 and skipped >= len(self.norms):
            raise NonFiniteLossError(
                f"fp16 left out all steps from {step - skipped + 1} to {step}, whose gradients are not finite, though "
                f"its scale fell to {scale:.2g}; {_kept(run)}. Use training.precision=bf16, lower optimizer.lr, or set "
                "training.clip."
            )

    def line(self, step: int, epoch: float, lr: float, norm: Tensor, processes: int, views: int) -> dict[str, Any]:
        """The window as one line of metrics; `loss` is the unweighted sum of the objectives."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        means = {name: float(torch.stack([one[name] for one in self.losses]).mean()) for name in self.losses[0]}
        return {
            "kind": "train",
            "step": step,
            "epoch": round(epoch, 4),
            "lr": lr,
            "loss": sum(means.values()),
            "losses": means,
            "counts": {
                name: {what: float(count) / len(self.losses) for what, count in found.items()}
                for name, found in self.counts.items()
            },
            "gradient_norm": float(norm),
            "patients": self.patients / len(self.losses),  # different ones in a batch, on average
            "images_per_second": self.samples * views * processes / seconds,
            "data_wait": self.wait / seconds,
        }


def _kept(run: Run) -> str:
    checkpoint = last_checkpoint(run.checkpoints)
    return f"the last good checkpoint is {checkpoint.name}" if checkpoint else "no checkpoint was due yet"


def find_idle(lines: Iterable[Mapping[str, Any]]) -> list[HealthFinding]:
    """Objectives whose loss was exactly 0 at every step of the run: they had nothing to learn from.

    Args:
        lines: all metrics of the run.

    >>> line = {"kind": "train", "losses": {"views": 0.0}, "counts": {"views": {"anchors": 0.0}}}
    >>> find_idle([line])[0].sentence.partition(":")[0]
    'views compared nothing'
    """
    trained = [line for line in lines if line["kind"] == "train"]
    found = []
    for name in trained[0]["losses"] if trained else ():
        if all(line["losses"][name] == 0 for line in trained):
            lonely = all(line["counts"][name]["anchors"] == 0 for line in trained)
            why = "no sample of a batch had a partner" if lonely else "no batch held anything to tell partners from"
            way_out = "raise sampling.batch_size, or look at what the objective's relation and negatives leave"
            sentence = f"{name} compared nothing: its loss was 0.0 at every step, and {why}; {way_out}."
            found.append(HealthFinding(f"idle {name}", 0.0, False, sentence))
    return found
