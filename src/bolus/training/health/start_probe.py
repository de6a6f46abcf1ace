"""Is a run ahead of the encoder that it started from? The online probe of each look against that before any step.

The look at step 0 stands in metrics.jsonl with the probe's score of each sample, so that a resumed run compares with
the same start. A run from random weights has no such look: any training beats them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from bolus.data.cohort.cohort import Samples
from bolus.data.images.cache import Store
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders, each_encoder
from bolus.evaluation.starts import build_start
from bolus.recipe import Recipe
from bolus.run import Run
from bolus.seeds import seed_for
from bolus.training.health.health import HealthFinding, watch
from bolus.training.health.online_probe import Probed

# Looks in a row below the start before a run is called behind it, or a third of the run if that is less.
PATIENCE: Final = 3
NAME: Final = "over start"
ADVICE: Final = (
    "try a lower optimizer.lr, optimizer.layer_decay below 1, fewer steps, or encoder.unfrozen to train only the last "
    "blocks"
)


def watch_start(
    run: Run, encoder: Encoder | ModalityEncoders, store: Store, samples: Samples, recipe: Recipe
) -> list[HealthFinding]:
    """Look at the pretrained weights before the first step, once, and write that look to the run's metrics.

    A neck and context blocks, whose weights are random then, are left out, as in an evaluation.

    Args:
        run: whose metrics are read and added to.
        encoder: before any step; its mode is put back.
        store: the pixels of `samples.cohort`.
        samples: as of `health.watch`.
        recipe: of the run.

    Returns:
        What was found; empty where the run starts from random weights, or was looked at before.

    Raises:
        EncoderError: as `bolus.evaluation.starts.build_start`.
    """
    specs = [each.spec for each in each_encoder(encoder)]
    done = any(line["kind"] == "health" and line["step"] == 0 for line in run.metrics())
    if done or not all(spec.pretrained for spec in specs):
        return []
    plain = encoder
    if any(spec.neck or spec.context for spec in specs):
        alone = build_start(recipe, encoder)
        assert alone is not None, "all are pretrained"
        plain = alone.to(next(encoder.parameters()).device)
    look = watch(plain, store, samples, recipe)
    line: dict[str, Any] = {"kind": "health", "step": 0, "findings": [each.to_json() for each in look.findings]}
    if look.probed is not None and not math.isnan(look.probed.value):
        scores = [[None if math.isnan(each) else each for each in row] for row in look.probed.scores.tolist()]
        line["start"] = {"role": look.probed.role, "samples": look.probed.samples, "scores": scores}
    run.append(line)
    return look.findings


def patience(total: int, health_steps: int) -> int:
    """How many looks in a row below the start make a run behind it: 3, or as many as fill a third of the run.

    >>> patience(100, 5), patience(100, 20), patience(100, 100)
    (3, 2, 1)
    """
    return min(PATIENCE, max(1, math.ceil(total / (3 * health_steps))))


def against_start(
    probed: Probed | None, lines: Sequence[Mapping[str, Any]], *, looks: int, seed: int
) -> tuple[list[HealthFinding], dict[str, Any]]:
    """This look against the one before the first step.

    Better or below is a difference whose 95 % interval over validation patients (a bootstrap, paired by patient) leaves
    out 0.

    Args:
        probed: of this look.
        lines: all metrics of the run, without this look's.
        looks: in a row below the start that make the run behind it (`patience`).
        seed: of the run.

    Returns:
        A finding, which is not good where the run is behind its start; and what belongs in the line of metrics. Both
        are empty where there is no start to compare with, or nothing could be probed.
    """
    earlier = [line for line in lines if line["kind"] == "health"]
    start = next((line["start"] for line in earlier if line["step"] == 0 and "start" in line), None)
    if start is None or probed is None:
        return [], {}
    if start["samples"] != probed.samples:
        sentence = (
            f"Not compared with the encoder it started from: that was probed for {start['role']} before the first "
            "step, on other samples or values than now."
        )
        return [HealthFinding(NAME, math.nan, True, sentence)], {}
    scores = np.array(start["scores"], dtype=np.float64).reshape(probed.scores.shape)
    found = probed.gain_over(scores, seed=seed_for(seed, "health", "start"))
    if math.isnan(found.value):
        return [], {}
    below, better = found.high < 0, found.low > 0
    before = [line["start"] for line in earlier if "difference" in line.get("start", {})]
    before = [each for each in before if each["role"] == probed.role]
    in_row = (before[-1]["below"] if before else 0) + 1 if below else 0
    known = math.isfinite(found.low) and math.isfinite(found.high)
    between = f" [{found.low:+.2f}, {found.high:+.2f}]" if known else ""
    size = f"{probed.measure} {found.value:+.2f}{between} for {probed.role}"
    if in_row >= looks:
        sentence = f"Behind its start for {in_row} look{'s' * (in_row > 1)}: {size}; {ADVICE}."
    elif better:
        sentence = f"Gained over the encoder it started from: {size}."
    elif any(each["better"] for each in before):
        sentence = f"No longer ahead of the encoder it started from, as an earlier look was: {size}."
    else:
        sentence = f"Nothing gained yet over the encoder it started from: {size}."
    facts = {"role": probed.role, "difference": found.value, "low": found.low, "high": found.high}
    return [HealthFinding(NAME, found.value, in_row < looks, sentence)], {
        "start": {**facts, "better": better, "below": in_row}
    }
