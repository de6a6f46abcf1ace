"""The loop: exact resume from any step, killed or not; clear errors; nothing lost to one bad image."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import bolus.training.assembly as assembly
import bolus.training.loop as loop
import bolus.training.rehearsal as rehearsal
from bolus.data.cohort.cohort import Cohort
from bolus.errors import CohortError, NonFiniteLossError, OutOfMemoryError, RecipeError, TrainingError
from bolus.recipe import ObjectiveSpec, Recipe
from bolus.run import Run, _changed
from bolus.training.assembly import resolve
from bolus.training.checkpoint import last_checkpoint
from bolus.training.loop import pretrain
from bolus.training.memory import explain_memory
from bolus.training.rehearsal import dry_run, rehearse
from bolus.training.step import apply_gradients, training_step
from bolus.training.window import Window
from damage import flip_bit
from kills import kill_and_resume
from pretended import pretended_cuda  # noqa: F401

Small = dict[str, Any]


def weights(run: Run) -> str:
    return str(run.record["weights"])


@pytest.fixture
def reference(trained_copy: Run) -> Run:
    return trained_copy


def test_a_run_leaves_what_it_promises(reference: Run) -> None:
    assert reference.status == "finished"
    assert {
        "recipe.yaml",
        "cohort.yaml",
        "run.json",
        "metrics.jsonl",
        "quarantine.jsonl",
        "encoder",
        "checkpoints",
    } <= {path.name for path in reference.folder.iterdir()}
    kinds = [line["kind"] for line in reference.metrics()]
    assert kinds.count("health") == 1
    assert kinds.count("train") == reference.record["steps"]
    cohort = Cohort.open(reference.folder / "cohort.yaml")
    assert len(reference.record["training_patients"]) == len(set(cohort.encoded("patient")[cohort.split == "train"]))
    assert "P0" not in json.dumps(reference.record["training_patients"]), "patients are stored as keyed hashes only"
    assert "Not a medical device" in (reference.folder / "encoder" / "README.md").read_text()


def test_the_loss_falls(tiny_cohort: Path, small_recipe: Small, tmp_path: Path) -> None:
    run = pretrain(
        tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True,
        overrides=["training.epochs=8", "optimizer={kind: adamw, lr: 0.003}"],
    )  # fmt: skip
    losses = [line["loss"] for line in run.metrics() if line["kind"] == "train"]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


@pytest.mark.parametrize(
    "kind", [pytest.param("lars", marks=pytest.mark.slow), "adamw", pytest.param("sgd", marks=pytest.mark.slow)]
)
def test_stopped_at_any_step_and_resumed_gives_the_same_weights_bit_for_bit(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path, kind: str
) -> None:
    recipe = Recipe.load(small_recipe).override(
        [f"optimizer.kind={kind}", "training.accumulate=2", "training.clip=1.0"]
    )
    whole = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "whole", cache=tmp_path / "cache", quiet=True)
    total = whole.record["steps"]
    folder = tmp_path / "parts"
    rng, parts = random.Random(kind), 0
    # Each part stops after the step at which the clock says so: max_hours of almost nothing is one step a part.
    part = pretrain(tiny_cohort, recipe=recipe, out=folder, cache=tmp_path / "cache", quiet=True,
                    overrides=["training.max_hours=1e-9"])  # fmt: skip
    while part.status == "stopped":
        parts += 1
        hours = 1e-9 if rng.random() < 0.5 else 100
        part = pretrain(tiny_cohort, recipe=recipe, out=folder, cache=tmp_path / "cache", quiet=True, resume=True,
                        overrides=[f"training.max_hours={hours}"])  # fmt: skip
    assert parts >= 1
    assert part.record["steps"] == total
    assert weights(part) == weights(whole)
    steps = [line["step"] for line in part.metrics() if line["kind"] == "train"]
    assert steps == sorted(set(steps)), "no step is logged twice"


def test_killed_at_random_moments_and_resumed_gives_the_same_weights_bit_for_bit(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path
) -> None:
    keys = ["training.epochs=6", "training.checkpoint_steps=3", "training.health_epochs=null"]
    recipe, cache = Recipe.load(small_recipe).override(keys), tmp_path / "cache"
    whole = pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "whole", cache=cache, quiet=True)
    killed, last = kill_and_resume(tiny_cohort, recipe, tmp_path / "killed", cache, kills=3, seed=0)
    assert killed >= 2, "the run ended before it could be killed"
    assert weights(last) == weights(whole)


def test_looking_at_a_run_does_not_change_it(
    tiny_cohort: Path, small_recipe: Small, reference: Run, tmp_path: Path
) -> None:
    watched = pretrain(
        tiny_cohort, recipe=small_recipe, out=tmp_path / "watched", cache=tmp_path / "cache", quiet=True,
        overrides=["training.health_epochs=0.2", "training.log_steps=3", "training.checkpoint_steps=2"],
    )  # fmt: skip
    assert sum(line["kind"] == "health" for line in watched.metrics()) > 1
    assert weights(watched) == weights(reference)


def test_another_seed_is_another_run(tiny_cohort: Path, small_recipe: Small, reference: Run, tmp_path: Path) -> None:
    other = pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "other", cache=tmp_path / "cache", quiet=True,
                     overrides=["training.seed=1"])  # fmt: skip
    assert weights(other) != weights(reference)


def test_a_finished_run_is_given_back_and_not_run_again(tiny_cohort: Path, small_recipe: Small, reference: Run) -> None:
    before = reference.metrics_path.stat().st_mtime_ns
    again = pretrain(tiny_cohort, recipe=small_recipe, out=reference.folder, resume=True, quiet=True)
    assert again.status == "finished"
    assert reference.metrics_path.stat().st_mtime_ns == before


def test_a_folder_with_a_run_is_not_overwritten(tiny_cohort: Path, small_recipe: Small, reference: Run) -> None:
    with pytest.raises(TrainingError, match="--resume"):
        pretrain(tiny_cohort, recipe=small_recipe, out=reference.folder, quiet=True)
    with pytest.raises(TrainingError, match=r"other keys: optimizer\.lr"):
        pretrain(
            tiny_cohort,
            recipe=small_recipe,
            out=reference.folder,
            quiet=True,
            resume=True,
            overrides=["optimizer.lr=0.3"],
        )
    data = yaml.safe_load(tiny_cohort.read_text())
    data["split"]["seed"] = 9
    tiny_cohort.write_text(yaml.safe_dump(data))
    with pytest.raises(TrainingError, match="another cohort or split"):
        pretrain(tiny_cohort, recipe=small_recipe, out=reference.folder, quiet=True, resume=True)


def test_unreadable_images_are_quarantined_counted_and_reported(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path
) -> None:
    (tiny_cohort.parent / "img" / "p3_1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tiny_cohort.parent / "img" / "p4_0.png").unlink()
    run = pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    assert run.status == "finished"
    assert run.record["num_quarantined"] == 2
    lines = [json.loads(line) for line in (run.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [11, 13]  # rows as a person counts them
    assert all(line["reason"] for line in lines)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteLossError, match=r"optimizer\.lr.*|training\.clip") as caught:
        pretrain(
            tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True,
            overrides=["optimizer={kind: sgd, lr: 1.0e18}", "training.epochs=20", "training.checkpoint_steps=1"],
        )  # fmt: skip
    kept = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert kept is not None
    assert kept.name in str(caught.value)
    from safetensors.torch import load_file

    assert all(
        tensor.isfinite().all()
        for tensor in load_file(kept / "tensors.safetensors").values()
        if tensor.is_floating_point()
    )


def window_of(*batches: dict[str, float], norms: tuple[float, ...]) -> Window:
    losses = [{name: torch.tensor(loss) for name, loss in batch.items()} for batch in batches]
    return Window(losses=losses, norms=[torch.tensor(norm) for norm in norms])


def test_the_first_loss_or_gradient_that_is_not_finite_is_named(tmp_path: Path) -> None:
    run, good, nan, inf = Run(tmp_path), {"a": 1.0, "b": 2.0}, float("nan"), float("inf")
    window_of(good, good, norms=(1.0, 1.0)).require_finite(8, run)
    after = {"a": nan, "b": nan}
    with pytest.raises(NonFiniteLossError, match=r"objective 'b' became NaN or infinite at step 7; no checkpoint"):
        window_of(good, {"a": 1.0, "b": inf}, after, norms=(1.0, inf, nan)).require_finite(8, run)
    with pytest.raises(NonFiniteLossError, match="objective 'a' became NaN or infinite at step 7;"):
        window_of(good, good, good, {"a": nan, "b": 1.0}, after, after, norms=(1, nan, nan)).require_finite(8, run)
    with pytest.raises(NonFiniteLossError, match="the gradient is not finite at step 7;"):
        window_of(good, good, after, norms=(1.0, inf, nan)).require_finite(8, run)
    window_of(good, good, norms=(inf, nan)).require_finite(8, run, gradients=False)


@pytest.mark.usefixtures("pretended_cuda")
def test_a_loss_that_is_not_finite_is_named_before_the_run_looks_at_itself(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, taken = loop.training_step, []

    def spoilt(*words: Any, **more: Any) -> Any:
        losses, counts = step(*words, **more)
        taken.append(losses)
        return ({**losses, "global": losses["global"] * float("nan")} if len(taken) == 2 else losses), counts

    monkeypatch.setattr(loop, "training_step", spoilt)
    monkeypatch.setattr(loop, "watch", lambda *words, **more: pytest.fail("it looked"))
    keys = ["training.log_steps=100", "training.health_epochs=0.6", "training.checkpoint_steps=100"]
    with pytest.raises(NonFiniteLossError, match="objective 'global' became NaN or infinite at step 2;"):
        pretrain(
            tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True, overrides=keys
        )
    assert len(taken) < 5


def test_half_precision_that_leaves_out_every_step_ends_the_run(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.training_step

    def spoilt(model: Any, *words: Any, **more: Any) -> Any:
        found = step(model, *words, **more)
        model.combiner._shared_sum[0].mul_(float("nan"))  # of a loss that is finite
        return found

    monkeypatch.setattr(loop, "training_step", spoilt)
    monkeypatch.setattr(loop, "check_precision", lambda *_: None)
    monkeypatch.setitem(assembly.AUTOCAST, "fp16", torch.bfloat16)  # as precise as it matters here, and not emulated
    keys = ["training.precision=fp16", "training.max_steps=24", "training.epochs=20", "training.log_steps=4",
            "training.health_epochs=null", "combiner.conflict_steps=null"]  # fmt: skip
    with pytest.raises(NonFiniteLossError, match=r"fp16 left out all steps from 1 to 20, .*scale fell to 0\.062.*bf16"):
        pretrain(
            tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True, overrides=keys
        )


def test_some_steps_that_half_precision_leaves_out_are_no_failure(tmp_path: Path) -> None:
    good = {"a": 1.0}
    window, run = window_of(good, good, norms=(float("inf"), 1.0)), Run(tmp_path)
    window.require_applied(8, 1, 2.0**-3, run)
    window.require_applied(8, 2, 1.0, run)
    with pytest.raises(NonFiniteLossError, match=r"from 7 to 8, .*Use training\.precision=bf16"):
        window.require_applied(8, 2, 0.5, run)


def test_gradients_of_the_step_before_are_gone_when_a_batch_goes_through_the_encoder(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path
) -> None:
    recipe = Recipe.load(small_recipe).override(["training.accumulate=2"])
    begun = rehearse(Cohort.open(tiny_cohort), recipe, batches=4, cache=tmp_path / "cache")
    model, held = begun.model, list[int]()

    def look(*_: Any) -> None:
        held.append(sum(parameter.grad is not None for parameter in model.combiner.parameters))

    next(part for part in model.encoder.modules() if isinstance(part, torch.nn.Conv2d)).register_forward_pre_hook(look)
    for number in range(4):
        training_step(model, begun.loader, begun.loader.fetch(number), begun.recipe, 0.0)
        if number % 2:
            apply_gradients(model, None)
    assert held and not any(held)


def test_opening_and_decoding_count_for_the_hours_of_a_call_and_not_for_those_of_training(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, seconds = loop.open_images, 3.0

    def slow(*words: Any) -> Any:
        time.sleep(seconds)
        return opened(*words)

    monkeypatch.setattr(loop, "open_images", slow)
    began = time.monotonic()
    run = pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True,
                   overrides=["training.log_steps=100", f"training.max_hours={seconds / 3600}"])  # fmt: skip
    assert (run.status, run.record["steps"]) == ("stopped", 1)
    assert run.record["hours"] * 3600 < time.monotonic() - began - seconds


def test_out_of_memory_names_no_key_that_would_change_nothing(small_recipe: Small) -> None:
    def named(*keys: str) -> str:
        with pytest.raises(OutOfMemoryError) as caught, explain_memory(Recipe.load(small_recipe).override(keys)):
            raise MemoryError
        return str(caught.value)

    assert "training.precision=bf16, " in named()
    assert "training.precision" not in named("training.precision=bf16") + named("training.precision=fp16")
    assert "combiner.conflict_steps=null" in named("combiner.conflict_steps=10")
    for keys in (["combiner.kind=pcgrad"], ["combiner.kind=balanced"], ["combiner.conflict_steps=null"]):
        assert "combiner.conflict_steps" not in named(*keys)


def test_out_of_memory_names_the_keys_to_change(small_recipe: Small) -> None:
    recipe = Recipe.load(small_recipe)
    with (
        pytest.raises(OutOfMemoryError, match=r"sampling\.batch_size, images\.size, objectives\.global\.width"),
        explain_memory(recipe),
    ):
        torch.empty(1 << 60)
    with pytest.raises(RuntimeError, match="other"), explain_memory(recipe):
        raise RuntimeError("other")


def test_dry_run_keeps_nothing_and_says_how_long(tiny_cohort: Path, small_recipe: Small, tmp_path: Path) -> None:
    found = dry_run(tiny_cohort, recipe=small_recipe, cache=tmp_path / "cache")
    assert found.images_per_second > 0
    assert 0.05 < found.memory_gib < 24
    assert found.steps == 2 * -(-(Cohort.open(tiny_cohort).split == "train").sum() // 8)
    assert found.hours == pytest.approx(found.steps * 16 / found.images_per_second / 3600)


def test_a_dry_run_takes_the_steps_of_a_run(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, list[Any]] = {}
    for place, name in ((loop, "run"), (rehearsal, "dry run")):

        def step(*words: Any, name: str = name, **more: Any) -> Any:
            told.setdefault(name, []).append((words[2].number, more["last"], more["observe"]))
            return training_step(*words, **more)

        monkeypatch.setattr(place, "training_step", step)
    keys = ["training.accumulate=2", "training.max_steps=2", "training.health_epochs=null"]
    options: Small = {"recipe": small_recipe, "overrides": keys, "cache": tmp_path / "cache"}
    dry_run(tiny_cohort, **options)
    pretrain(tiny_cohort, out=tmp_path / "run", quiet=True, **options)
    assert told["dry run"] == told["run"]
    assert [last for _, last, _ in told["run"]] == [False, True, False, True]


def test_recipe_and_cohort_must_go_together(tiny_cohort: Path, small_recipe: Small, tmp_path: Path) -> None:
    def run(*keys: str) -> None:
        pretrain(
            tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True, overrides=keys
        )

    with pytest.raises(RecipeError, match=r"unknown key 'optimizer.lrr'; did you mean 'lr'"):
        run("optimizer.lrr=1")
    with pytest.raises(RecipeError, match="views"):
        run("images.views=1")
    with pytest.raises(RecipeError, match="has none"):
        run("encoder={backbone: vit_tiny}")
    with pytest.raises(RecipeError, match="batch_size"):
        run("sampling.batch_size=4096")
    with pytest.raises(CohortError, match="'site'"):
        run("objectives={s: {kind: contrast, relation: site}}")
    with pytest.raises(RecipeError, match="related"):
        run("objectives={s: {kind: contrast, relation: {same: [patient], within: {time: 10}, differ: [visit]}}}")
    assert not (tmp_path / "run").exists(), "a run that cannot start leaves nothing behind"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_relations_other_than_views_train(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path, precision: str
) -> None:
    objectives = "objectives={p: {kind: contrast, relation: patient, negatives: other_patients}, v: {kind: contrast}}"
    run = pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / precision, cache=tmp_path / "cache", quiet=True,
                   overrides=[objectives, f"training.precision={precision}"])  # fmt: skip
    lines = [line for line in run.metrics() if line["kind"] == "train"]
    assert all(line["counts"]["p"]["anchors"] == 16 for line in lines)  # every row has its own other view at the least
    assert all(np.isfinite(line["loss"]) for line in lines)


def stopped_run(tiny_cohort: Path, small_recipe: Small, tmp_path: Path) -> Run:
    return pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "part", cache=tmp_path / "cache", quiet=True,
                    overrides=["training.max_hours=1e-9"])  # fmt: skip


def go_on(tiny_cohort: Path, small_recipe: Small, tmp_path: Path) -> Run:
    return pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "part", cache=tmp_path / "cache", quiet=True,
                    resume=True)  # fmt: skip


@pytest.mark.parametrize("change", ["order", "rows", "images"])
def test_another_table_of_the_same_patients_is_another_run(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path, change: str
) -> None:
    stopped_run(tiny_cohort, small_recipe, tmp_path)
    table = tiny_cohort.with_name("table.csv")
    head, *lines = table.read_text().splitlines()
    trained = int(np.flatnonzero(Cohort.open(tiny_cohort).split == "train")[0])
    if change == "images":
        (tiny_cohort.parent / lines[trained].split(",")[0]).write_bytes(b"unreadable now")
    else:
        kept = lines[::-1] if change == "order" else lines[:trained] + lines[trained + 1 :]
        table.write_text("\n".join([head, *kept]) + "\n")
    with pytest.raises(TrainingError, match="other training images or columns"):
        go_on(tiny_cohort, small_recipe, tmp_path)


def test_an_image_that_was_replaced_is_another_run(tiny_cohort: Path, small_recipe: Small, tmp_path: Path) -> None:
    run = stopped_run(tiny_cohort, small_recipe, tmp_path)
    cohort = Cohort.open(tiny_cohort)
    first, second = (cohort.image_path(row) for row in np.flatnonzero(cohort.split == "train")[:2])
    kept = first.read_bytes()
    assert kept != second.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(TrainingError, match="other content of its image files"):
        go_on(tiny_cohort, small_recipe, tmp_path)
    record = {key: value for key, value in run.record.items() if key != "content_hash"}  # as earlier versions wrote it
    run.record_path.write_text(json.dumps(record))
    assert go_on(tiny_cohort, small_recipe, tmp_path).status == "finished"


def test_a_torn_last_line_of_metrics_does_not_stop_a_resumption(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path
) -> None:
    run = stopped_run(tiny_cohort, small_recipe, tmp_path)
    with run.metrics_path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert go_on(tiny_cohort, small_recipe, tmp_path).status == "finished"


def test_numbers_that_are_not_finite_are_null_in_metrics(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append({"kind": "train", "step": 1, "gradient_norm": float("inf"), "losses": {"a": float("nan")}})
    assert run.metrics() == [{"kind": "train", "step": 1, "gradient_norm": None, "losses": {"a": None}}]


def test_a_folder_of_other_things_is_not_trained_in(tiny_cohort: Path, small_recipe: Small, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("precious")
    with pytest.raises(TrainingError, match="neither empty nor a run"):
        pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "mine", quiet=True)
    assert (tmp_path / "mine" / "recipe.yaml").read_text() == "precious"


def test_the_saved_recipe_has_every_key(reference: Run) -> None:
    saved = yaml.safe_load((reference.folder / "recipe.yaml").read_text())
    assert saved["objectives"]["global"]["depth"] == 3
    assert saved["images"]["augment"]["rotation"] is not None


def test_two_checkpoints_are_kept_and_from_a_damaged_one_the_run_goes_back_to_the_one_before(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path, reference: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = ["training.checkpoint_steps=1", "training.max_hours=1e-9", "training.log_steps=3"]
    for resume in (False, True):
        run = pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "part", cache=tmp_path / "cache", quiet=True,
                       overrides=keys, resume=resume)  # fmt: skip
        assert run.status == "stopped"
    kept = sorted(run.checkpoints.glob("step-*"))
    assert len(kept) == 2
    flip_bit(kept[1] / "tensors.safetensors", np.random.default_rng(0), start=kept[1].stat().st_size)
    went_on = pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "part", cache=tmp_path / "cache", resume=True)
    assert went_on.record["weights"] == reference.record["weights"]
    assert f"{kept[1].name} is damaged" in capfd.readouterr().err


def test_a_probe_that_does_not_exist_is_an_error_before_anything_is_decoded(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="label:sick"):
        pretrain(tiny_cohort, recipe=small_recipe, out=tmp_path / "run", cache=tmp_path / "cache", quiet=True,
                 overrides=["training.probe=label:sik"])  # fmt: skip
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_dry_run_leaves_out_what_cannot_be_read(tiny_cohort: Path, small_recipe: Small, tmp_path: Path) -> None:
    broken = sorted((tiny_cohort.parent / "img").glob("*.png"))[::3]
    for path in broken:
        path.write_bytes(b"no picture")
    found = dry_run(tiny_cohort, recipe=small_recipe, cache=tmp_path / "cache")
    assert 0 < found.unreadable <= len(broken)
    assert found.steps > 0


def test_a_dry_run_refuses_a_probe_that_the_run_would_refuse(
    tiny_cohort: Path, small_recipe: Small, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="score:nope"):
        dry_run(tiny_cohort, recipe=small_recipe, overrides=["training.probe=score:nope"], cache=tmp_path / "cache")


def test_running_out_of_memory_names_the_frames_of_clips(small_recipe: Small) -> None:
    recipe = Recipe.load(small_recipe).override(["images.unit=clip", "images.frames=6"])
    with (
        pytest.raises(OutOfMemoryError, match=r"8 samples x 2 views x 6 frames.*images\.frames"),
        explain_memory(recipe),
    ):
        raise MemoryError


def test_a_run_from_before_a_key_existed_has_its_default() -> None:
    now = resolve(Recipe.load("simclr"))
    views = now.objectives["views"].model_dump()
    earlier = now.model_copy(
        update={"objectives": {"views": ObjectiveSpec(**{k: v for k, v in views.items() if k != "learnable"})}}
    )
    assert _changed(earlier, now) == []
    assert _changed(earlier, now.override(["objectives.views.learnable=true"])) == ["objectives.views.learnable"]


def test_half_precision_on_a_cpu_is_refused(tiny_cohort: Path, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.load(small_recipe).override(["training.precision=fp16"])
    with pytest.raises(RecipeError, match=r"fp16 needs a GPU.* take bf16 or fp32"):
        pretrain(tiny_cohort, recipe=recipe, out=tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(RecipeError, match="fp16 needs a GPU"):
        dry_run(tiny_cohort, recipe=recipe, cache=tmp_path / "cache")
