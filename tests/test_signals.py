"""Signals end a run with a checkpoint, from which it goes on to the same weights; two processes are one too many."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bolus.training.loop as loop
from bolus.errors import InterruptedRunError, TrainingError
from bolus.run import Run
from bolus.training.loop import pretrain
from bolus.training.signals import awaiting

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
Recipe = dict[str, object]


@pytest.fixture
def train(tiny_cohort: Path, small_recipe: Recipe, tmp_path: Path) -> Callable[..., Run]:
    def call(name: str, **more: Any) -> Run:
        keys = ["training.log_steps=4", "training.health_epochs=null", "training.max_steps=6"]
        return pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / name, overrides=keys,
                        cache=tmp_path / "cache", quiet=True, **more)  # fmt: skip

    return call


def send(monkeypatch: pytest.MonkeyPatch, number: int, *steps: int) -> None:
    """Have this process get a signal in the midst of these steps."""
    step, taken = loop.training_step, [0]

    def interrupted(*words: Any, **more: Any) -> Any:
        taken[0] += 1
        if taken[0] in steps:
            os.kill(os.getpid(), number)
        return step(*words, **more)

    monkeypatch.setattr(loop, "training_step", interrupted)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_after_its_step_and_it_goes_on_to_the_same_weights(
    number: signal.Signals, train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole").record["weights"]
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        send(patch, number, 3)
        with pytest.raises(
            InterruptedRunError, match=f"{number.name} ended the run at step 3 of 6, .*--resume"
        ) as caught:
            train("part")
    assert caught.value.exit_code == 128 + number
    assert [signal.getsignal(each) for each in SIGNALS] == before
    run = Run(tmp_path / "part")
    assert (run.status, run.record["steps"]) == ("interrupted", 3)
    assert [each.name for each in run.checkpoints.iterdir()] == ["step-000000003"]
    assert not run.encoder.exists(), "an encoder is of a finished run"
    assert train("part", resume=True).record["weights"] == whole


def test_in_the_last_step_the_run_is_finished(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    send(monkeypatch, signal.SIGTERM, 6)
    assert train("whole").status == "finished"


def test_a_second_interrupt_does_not_wait(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    step = loop.training_step

    def twice(*words: Any, **more: Any) -> Any:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)  # two that come at once are one
        return step(*words, **more)

    monkeypatch.setattr(loop, "training_step", twice)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            train("part")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_is_ignored_stays_ignored_and_other_threads_take_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with awaiting() as came:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert came == []
    finally:
        signal.signal(signal.SIGHUP, before)
    found: list[Any] = []

    def elsewhere() -> None:
        with awaiting():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_command_says_how_to_go_on(processes: int, tiny_cohort: Path, tmp_path: Path) -> None:
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if processes == 2 else []
    keys = ["encoder.backbone=r18w32", "images.size=24", "sampling.batch_size=8", "training.max_steps=100000"]
    words = ["pretrain", tiny_cohort, "--recipe", "simclr", "--out", tmp_path / "run", *keys, "training.log_steps=1"]
    process = subprocess.Popen(
        [sys.executable, *launched, "-m", "bolus.cli", *map(str, words)],
        env={**os.environ, "BOLUS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    metrics, patience = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and '"train"' in metrics.read_text()):
        assert time.monotonic() < patience
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    run = Run(tmp_path / "run")
    assert run.status == "interrupted"
    assert len([*run.checkpoints.iterdir()]) == 1
    assert f"go on with the same command and --resume ({tmp_path / 'run'})" in said.replace("\n", "")
    assert process.returncode == (128 + signal.SIGTERM if processes == 1 else 1)
    assert processes == 2 or "Traceback" not in said


def test_one_training_at_a_time(train: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = "import sys, time; from pathlib import Path; from bolus.run import Run\n"
    hold += "with Run(Path(sys.argv[1])).alone():\n    print('held', flush=True)\n    time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "part"], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(TrainingError, match=r"another process trains in .*part; wait"):
        train("part")
    with pytest.raises(TrainingError, match="another process trains"):
        train("part", resume=True)
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["run.lock"]
    other.kill()  # as a crash or a power cut would
    other.wait()
    assert train("part").status == "finished"
    assert train("part", resume=True).status == "finished"


def test_a_system_without_locks_trains_all_the_same(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*words: Any, **more: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    assert train("part").status == "finished"


def test_a_lock_of_a_run_that_came_to_nothing_goes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), Run(tmp_path / "new").alone():
        raise ValueError("no")
    assert not (tmp_path / "new").exists()
