"""Attacks on what bolus promises, each counted: `make torture`.

    python benchmarks/torture.py                 # all, half an hour on two cores
    python benchmarks/torture.py kills flips     # some

Killed and resumed trainings are compared with one that nobody disturbed, weights bit for bit. Flipped bits fall into
checkpoints and caches. Hostile files are read in processes of their own. What has a test for each case is counted by
its tests. The attacks themselves lie in tests/, where `make test` runs some of each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
sys.path.insert(0, str(TESTS))

import twins  # noqa: E402
from bolus.data.images.cache import build_store  # noqa: E402 - attacks lie beside the tests
from bolus.phantom.images import make_phantom  # noqa: E402
from bolus.recipe import Recipe  # noqa: E402
from bolus.training.loop import pretrain  # noqa: E402
from grid import DATA, RESULTS, write_results  # noqa: E402
from small import SMALL  # type: ignore[import-not-found]  # noqa: E402

Counts = dict[str, Any]
KILLS, RUNS, FLIPS = 20, 4, 40
RECIPE = SMALL | {
    "training": {"max_steps": 40, "epochs": 100, "log_steps": 1, "checkpoint_steps": 3, "health_epochs": None},
}
VIEWS = (
    "objectives.global=null",
    "objectives.levels=null",
    "objectives.views={kind: contrast, relation: views, dim: 16}",
    "encoder.context=false",
    "encoder.stem_pool=true",
)
KINDS: dict[str, tuple[str, ...]] = {
    "sum": (),
    "GradMitigator": ("combiner={kind: grad_mitigator, rate: 0.3}",),
    "batches in chunks": ("sampling.chunk=3",),
    "drop path and dropout": VIEWS,
}


def kills(work: Path) -> list[Counts]:
    """SIGKILL at random moments, four runs of each kind, each killed five times in a row."""
    from kills import kill_and_resume  # type: ignore[import-not-found]

    cohort = make_phantom(work / "cohort", num_patients=12, size=24).with_name("cohort.yaml")
    found = []
    for kind, keys in KINDS.items():
        dropping = [f"encoder.backbone={save_vit(work / 'vit')}", "encoder.pretrained=true"] if "drop" in kind else []
        recipe = Recipe.load(RECIPE).override([*keys, *dropping])
        whole = pretrain(cohort, recipe=recipe, out=work / f"{kind} whole", cache=work / "cache", quiet=True)
        killed = equal = 0
        for seed in range(RUNS):
            met, run = kill_and_resume(
                cohort, recipe, work / f"{kind} {seed}", work / "cache", kills=KILLS // RUNS, seed=seed
            )
            same = run.record["weights"] == whole.record["weights"]
            killed, equal = killed + met, equal + met * same
        promise = "a killed training is resumed to the same weights, bit for bit"
        found.append(counts(promise, f"SIGKILL, {kind}", killed, equal))
    return found


def save_vit(folder: Path) -> Path:
    """A small ViT with dropout and drop path, as transformers saves it."""
    from transformers import Dinov2Config, Dinov2Model

    if not folder.is_dir():
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=6, drop_path_rate=0.5,
            hidden_dropout_prob=0.2,
        )  # fmt: skip
        Dinov2Model(config).save_pretrained(folder)
    return folder


def flips(work: Path) -> list[Counts]:
    """One bit of a checkpoint's tensors or state, and of the images of a cache."""
    from bolus.data.cohort.cohort import Cohort
    from bolus.data.images.preprocessing import Preprocessing
    from bolus.training.checkpoint import restore, save_checkpoint
    from damage import flip_bit  # type: ignore[import-not-found]

    def optimised() -> tuple[dict[str, torch.nn.Module], torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = torch.nn.Linear(16, 16)
        optimizer = torch.optim.AdamW(net.parameters())
        net(torch.ones(1, 16)).sum().backward()
        optimizer.step()
        return {"net": net}, optimizer

    noticed = 0
    for seed in range(FLIPS):
        folder = work / f"checkpoints {seed}"
        for step in (1, 2):
            newest = save_checkpoint(folder, step, *optimised(), {"seconds": 0.0})
        path = newest / ("tensors.safetensors", "state.json")[seed % 2]
        if path.suffix == ".json":  # without white space, of which a flip changes nothing
            path.write_text(path.read_text().replace("\n", "").replace('": ', '":'))
        flip_bit(path, np.random.default_rng(seed))
        restored = restore(folder, *optimised())
        noticed += restored is not None and restored.step == 1
    found = [counts("damage to a checkpoint is found, and the one before taken", "a flipped bit", FLIPS, noticed)]

    cohort = Cohort.open(make_phantom(work / "flipped", num_patients=6, size=24))
    contract, cache = Preprocessing(24), work / "flipped cache"
    before = images_of(build_store(cohort, contract, folder=cache))
    shards, same = sorted(cache.rglob("*.npy")), 0
    for seed in range(FLIPS):
        shard = shards[seed % len(shards)]
        whole = shard.read_bytes()
        flip_bit(shard, np.random.default_rng(seed), start=128)
        same += bool((images_of(build_store(cohort, contract, folder=cache)) == before).all())
        shard.write_bytes(whole)
        for mark in cache.rglob("*.damaged"):
            mark.unlink()
    promise = "a damaged image of the cache is decoded again"
    return [*found, counts(promise, "a flipped bit", FLIPS, same)]


def images_of(store: Any) -> Any:
    """Every image of a store."""
    return store.gather(np.arange(len(store.readable))).unit().numpy()


def hostile(work: Path) -> list[Counts]:
    """Files that were cut off, flipped, overwritten, that lie in their headers or unpack to gigabytes."""
    from hostile_reading import torture  # type: ignore[import-not-found]

    found = torture(work)
    silent = {kind: wrong for kind, (wrong, _) in found["silent"].items() if wrong}
    damaged = sum(number for _, number in found["silent"].values())
    remark = (
        f"{found['read']} read, {found['refused']} refused; {found['worst_seconds']} s, {found['worst_gib']} GiB "
        f"at most. Of {damaged} damaged ones {sum(silent.values())} were read with more than 5 % of values changed, "
        f"in formats that have no checksum ({', '.join(sorted(silent))})"
    )
    promise = "a hostile file is read or refused: no crash, no hang, no error that is not of bolus"
    tried, held = found["files"], found["read"] + found["refused"]
    return [counts(promise, "cut off, flipped, zeroed, lying headers, bombs", tried, held, remark=remark)]


def copies(work: Path) -> list[Counts]:
    """Images of public cohorts filed once more under new patients, each kind of change by itself; none without them."""
    names = [name for name in ("nih1000", "cxr", "acdc") if (DATA / name / "meta.csv").is_file()]
    cohorts = [twins.of_cohort(name) for name in names]
    found = []
    for kind in twins.KINDS if cohorts else ():
        held = sum(each["kinds"][kind]["found"] for each in cohorts)
        false = sum(each["kinds"][kind]["new_pairs_of_others"] for each in cohorts)
        promise = "check finds images filed under another patient"
        found.append(
            counts(promise, kind, len(cohorts) * twins.PLANTED, held, remark=f"{false} false pairs; {', '.join(names)}")
        )
    return found


TESTED: dict[str, tuple[str, str, str]] = {
    "signals": (
        "a signal ends the step, writes a checkpoint and says how to go on; one training holds a run folder",
        "TERM, INT, HUP, USR1; two trainings at once; a system without locks",
        "test_signals.py",
    ),
    "room": (
        "no room on the disk: one sentence, nothing half written, the last checkpoint stands",
        "checkpoint, cache and table over a limit",
        "test_no_room.py",
    ),
    "keys": (
        "hashes of training patients open to nobody without the site's key, which lies in no folder that is given away",
        "seven-digit numbers hashed with all that a run holds; keys moved, open to others, in the run folder",
        "test_site_key.py",
    ),
    "strip": (
        "an encoder that is given away leads to nobody",
        "runs, heads, segmenters, earlier versions",
        "test_strip.py",
    ),
    "tables": (
        "tables of embeddings and predictions name nobody, and no cell is a formula",
        "names, identifiers, dates, paths, notes; = + - @ in cells",
        "test_written_columns.py",
    ),
    "privacy": (
        "every file holds what docs/privacy.md says, and nothing else of what was planted",
        "names planted in a table, in DICOM headers and in paths, then a life of commands",
        "test_private_life.py",
    ),
    "escapes": (
        "no cell, name or key commands a terminal",
        "escape sequences in cells, file names, keys",
        "test_terminals.py",
    ),
}


def tested(name: str) -> list[Counts]:
    """A promise with a test for each case: how many hold."""
    promise, attack, file = TESTED[name]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", str(TESTS / file), "-q", "-p", "no:xdist", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        suite = ElementTree.parse(report).getroot()[0].attrib
    total = int(suite["tests"]) - int(suite["skipped"])
    return [counts(promise, f"{attack} ({file})", total, total - int(suite["failures"]) - int(suite["errors"]))]


def counts(promise: str, attack: str, tried: int, held: int, **more: Any) -> Counts:
    """A line of the result."""
    return {"promise": promise, "attack": attack, "tried": tried, "held": held, **more}


PARTS: dict[str, Callable[[Path], list[Counts]]] = {
    "kills": kills,
    "flips": flips,
    "hostile": hostile,
    "copies": copies,
    **{name: lambda _, name=name: tested(name) for name in TESTED},  # type: ignore[misc]
}


def main() -> int:
    """Attack, count, and fail where a promise did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all where none is named")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path, failed = RESULTS / "torture.json", False
    done = json.loads(path.read_text())["results"] if path.is_file() else []
    for name in arguments.parts or PARTS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[name](Path(folder))
        for line in found:
            print(f"{line['held']:4} of {line['tried']:4}  {line['promise']}: {line['attack']}")
        seconds = round(time.monotonic() - began, 1)
        done = [line for line in done if line["part"] != name]
        done += [{"part": name, **line, "seconds": seconds} for line in found]
        write_results(path, sorted(done, key=lambda line: [*PARTS].index(line["part"])))
        failed |= any(line["held"] < line["tried"] for line in found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
