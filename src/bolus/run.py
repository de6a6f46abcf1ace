"""A run: the folder that a pretraining leaves behind, and what later steps read from it.

recipe.yaml        every key, resolved
cohort.yaml        the table and its roles
run.json           versions, hashes, keyed hashes of the training patients and which key they are under, how it ended
metrics.jsonl      losses, speed, health
quarantine.jsonl   rows that could not be read, with reasons
checkpoints/       the last whole checkpoint
run.lock           held by the process that trains
encoder/           weights, configuration, preprocessing contract, card; of encoders per modality a folder each
evaluations/       one folder for each question asked of the encoder
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bolus.data.cohort.cohort import Cohort
from bolus.data.images.cache import Quarantined
from bolus.errors import BolusError, TrainingError
from bolus.files import NO_ROOM, load_json, read_lines, strict_json, write_json, write_text
from bolus.provenance import versions
from bolus.recipe import EncoderSpec, Recipe

# May differ between the parts of one run, because no weight depends on them, or by the order of a sum at most (shard).
FREE = {
    "max_hours",
    "checkpoint_minutes",
    "checkpoint_steps",
    "health_epochs",
    "log_steps",
    "probe",
    "tracker",
    "shard",
}


class Record(dict[str, Any]):
    """run.json as data; a key that it lacks, because the version that wrote it had no such key, is a BolusError.

    >>> Record(Path("a/run.json"), {"status": "finished"})["salt"]
    Traceback (most recent call last):
    bolus.errors.BolusError: a/run.json has no 'salt': an earlier version wrote it, or it is damaged; train anew in
    another folder
    """

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise BolusError(
            f"{self.path} has no {key!r}: an earlier version wrote it, or it is damaged; train anew in another folder"
        )


NAMED_KEYS = 5  # of those that differ between two recipes

LOCK = "run.lock"


@dataclass(frozen=True)
class Run:
    """A run folder.

    Args:
        folder: where it lies.

    Raises:
        BolusError: from its properties, where a file is missing that a finished run has.
    """

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run that exists.

        Raises:
            BolusError: the folder holds no run.
        """
        run = cls(Path(folder))
        if not run.record_path.is_file():
            raise BolusError(f"no run in {run.folder}: expected {run.record_path.name} there")
        return run

    @property
    def record_path(self) -> Path:
        """run.json."""
        return self.folder / "run.json"

    @property
    def metrics_path(self) -> Path:
        """metrics.jsonl."""
        return self.folder / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The checkpoint folder."""
        return self.folder / "checkpoints"

    @property
    def encoder(self) -> Path:
        """The encoder folder, written when training ends."""
        return self.folder / "encoder"

    @cached_property
    def record(self) -> Record:
        """run.json as data."""
        try:
            return Record(self.record_path, dict(load_json(self.record_path.read_bytes())))
        except OSError as error:
            raise BolusError(f"no run in {self.folder}: expected {self.record_path.name} there") from error
        except (TypeError, ValueError) as error:
            raise BolusError(f"{self.record_path}: damaged: {error}") from error

    @property
    def training(self) -> dict[str, Any]:
        """Whom it was trained on, as `hash_patients` says; before keys were the site's, without `key`."""
        key = {"key": self.record["key"]} if "key" in self.record else {}
        return {"salt": self.record["salt"], **key, "keys": self.record["training_patients"]}

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as it was run."""
        return Recipe.load(self.folder / "recipe.yaml")

    @property
    def status(self) -> str:
        """`new`, `running`, `stopped` (at `training.max_hours`), `interrupted` (by a signal) or `finished`."""
        return str(self.record["status"]) if self.record_path.is_file() else "new"

    @classmethod
    def claim(cls, folder: Path, cohort: Cohort, recipe: Recipe, *, resume: bool) -> Run:
        """A folder that this recipe may train in: empty or new, or one that holds this very run; nothing is written.

        Args:
            folder: of the run.
            cohort: what is trained on.
            recipe: with every override applied.
            resume: an unfinished run may be there; recipe and split must be the same, but for how often it saves,
                logs and looks at itself, and for `training.max_hours`.

        Raises:
            TrainingError: the folder holds a run and `resume` is false, or it holds another run.
        """
        run = cls(folder)
        if folder.is_file():
            raise TrainingError(f"{folder} is a file; choose a folder that is empty or new")
        if run.status == "new" and folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise TrainingError(f"{folder} is neither empty nor a run; choose another folder")
        if run.status != "new":
            if not resume:
                raise TrainingError(f"{folder} holds a run; go on with --resume, or choose another folder")
            changed = _changed(run.recipe, recipe)
            if changed:
                more = len(changed) - NAMED_KEYS
                keys = ", ".join(changed[:NAMED_KEYS]) + (f" and {more} more" if more > 0 else "")
                raise TrainingError(f"{folder} was started with other keys: {keys}; choose another folder")
            if run.record["split_hash"] != cohort.split_hash:
                raise TrainingError(f"{folder} was started on another cohort or split; resuming would mix patients")
        return run

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder, so that no other process trains in it at the same time.

        The lock is the system's (`flock`), which ends with the process that holds it, however it ends; over a network
        it is as good as the file system's. Where there is none, nothing is held.

        Raises:
            TrainingError: another process holds it, or another training of this one.

        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, Run(Path(folder)).alone():
        ...     with Run(Path(folder)).alone():
        ...         pass
        Traceback (most recent call last):
        bolus.errors.TrainingError: another process trains in ...; wait until it has ended, or choose another folder
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise TrainingError(
                f"another process trains in {self.folder}; wait until it has ended, or choose another folder"
            ) from None
        except NotImplementedError:
            yield
            return
        try:
            yield
        finally:
            lock.release()
            if [path.name for path in self.folder.iterdir()] == [LOCK]:  # nothing came of it
                with suppress(OSError):
                    (self.folder / LOCK).unlink()
                    self.folder.rmdir()

    @contextmanager
    def explain_no_room(self) -> Iterator[None]:
        """Turn an error for want of room on the disk into a TrainingError that says how to go on.

        >>> with Run(Path("run")).explain_no_room():
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        bolus.errors.TrainingError: no room to write: No space left on device; no checkpoint was written yet: make
        room, then go on with the same command and --resume
        """
        try:
            yield
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            stands = f"the last checkpoint of {self.folder} stands" if any(self.checkpoints.glob("step-*")) else ""
            said = f"no room to write: {os.strerror(error.errno)}; {stands or 'no checkpoint was written yet'}"
            raise TrainingError(f"{said}: make room, then go on with the same command and --resume") from error

    def recognise(self, facts: Mapping[str, Any], bound: str) -> list[str]:
        """Compare an unfinished run with what it would be resumed with.

        Args:
            facts: as given to `create`.
            bound: why another number of processes would be another training; empty where it would not.

        Returns:
            What changed that makes the result differ in its last bits, in sentences.

        Raises:
            TrainingError: images or columns changed, or processes that it is bound to, so that it would be another run.
            BolusError: the run was begun by a version that recorded less than going on needs.
        """
        for key in (*facts, "ancestors"):
            if key != "content_hash":  # which earlier versions did not record
                self.record[key]  # what is only needed when the run ends is missed now
        begun = f"{self.folder} was started with"
        if self.record["data_hash"] != facts["data_hash"]:
            raise TrainingError(
                f"{begun} other training images or columns, or by a version that reads them otherwise; resuming would "
                "mix two runs: train anew in another folder"
            )
        if self.record.get("content_hash", facts["content_hash"]) != facts["content_hash"]:
            raise TrainingError(
                f"{begun} other content of its image files, or other series; resuming would mix two runs: train anew "
                "in another folder"
            )
        if self.record["processes"] != facts["processes"] and bound:
            raise TrainingError(
                f"{begun} another number of processes, {self.record['processes']}, and {bound}; resume with as many, "
                "or train anew in another folder"
            )
        changed = [key for key in ("processes", "device", "threads") if self.record[key] != facts[key]]
        changed += [key for key, value in versions().items() if self.record["versions"].get(key) != value]
        return [f"{key} changed since the run began: weights will agree closely, not bit for bit" for key in changed]

    def create(
        self, cohort: Cohort, recipe: Recipe, quarantined: Sequence[Quarantined], facts: Mapping[str, Any]
    ) -> None:
        """Write what a run knows before its first step; of training patients, keyed hashes only.

        Args:
            cohort: what is trained on.
            recipe: as it is run.
            quarantined: rows that cannot be read.
            facts: `data_hash`, `content_hash`, `processes`, `device` and `threads`, which a resumption is held to,
                `num_training_samples`, and `ancestors`, the lineage of the encoder that it starts from.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "recipe.yaml", recipe.to_yaml())
        cohort.save(self.folder / "cohort.yaml")
        lines = [json.dumps({"row": item.row + 1, "reason": item.reason}) + "\n" for item in quarantined]
        write_text(self.folder / "quarantine.jsonl", "".join(lines))
        trained_on = cohort.hash_trained()
        self._write(
            {
                "status": "running",
                "recipe": recipe.name,
                "recipe_hash": recipe.digest,
                "split_hash": cohort.split_hash,
                "num_rows": len(cohort),
                "num_quarantined": len(quarantined),
                **facts,
                "versions": versions(),
                "platform": platform.platform(),
                "salt": trained_on["salt"],
                "key": trained_on["key"],
                "training_patients": trained_on["keys"],
            }
        )

    def finish(self, status: str, **facts: Any) -> None:
        """Record how the run ended."""
        self._write({**json.loads(self.record_path.read_text(encoding="utf-8")), "status": status, **facts})

    def append(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; a number that is not finite is written as null."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(strict_json(line) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the metrics of steps that will be taken again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        write_text(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))

    def since_health(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind since the run last looked at its health."""
        found: list[dict[str, Any]] = []
        for line in self.metrics():
            found = [] if line["kind"] == "health" else [*found, line] if line["kind"] == kind else found
        return found

    def card(self, modality: str | None = None) -> str:
        """What a person should know before using the encoder, or that of a modality, as Markdown."""
        record, recipe = self.record, self.recipe
        if modality is None:
            seen, channels = recipe.images.extent, recipe.encoder.in_channels
            sizes = {name: recipe.images_of(name).sides for name, each in recipe.modalities.items() if each.size}
            other = {f"{name} {' x '.join(map(str, sides))}" for name, sides in sizes.items()}
            seen += f" ({', '.join(sorted(other))})" if other else ""
        else:
            channels = recipe.encoder_of(modality).in_channels
            seen = f"{recipe.images_of(modality).extent}, of modality {modality}"
        objectives = ", ".join(
            f"{name} ({spec.kind}, weight {spec.weight:g})" for name, spec in recipe.objectives.items()
        )
        unit, steps = recipe.images.unit, recipe.images.steps
        spacing = "" if steps is None else f" at {' x '.join(f'{step:g}' for step in steps)} mm"
        windows = (
            "squeezed into the box" if recipe.images.fit == "stretch" else "in windows whose embeddings are averaged"
        )
        sample = {
            "clip": f"a clip, {recipe.images.frames} frames, one from the middle of each equal part",
            "volume": f"a volume{spacing} (depth, height, width), {windows}",
        }.get(unit, "one image")
        return (
            f"# Encoder pretrained with bolus {record['versions']['bolus']}\n\n"
            f"- Recipe: {recipe.name} {recipe.source} ({record['recipe_hash']}); objectives: {objectives}\n"
            f"- Trained on {record['num_training_samples']} {unit if unit in ('clip', 'volume') else 'image'}s of "
            f"{len(record['training_patients'])} patients, split "
            f"{record['split_hash']}\n"
            f"- Input: {sample}, in [0, 1], {seen}, {channels} channel(s); ranges and fit are in encoder.json\n"
            f"{_inflated(recipe.encoder if modality is None else recipe.encoder_of(modality))}"
            "- Not a medical device. Judge it on patients it has not seen: bolus evaluate.\n"
        )

    def _write(self, record: dict[str, Any]) -> None:
        write_json(self.record_path, record)

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl; what a crash tore is left out, and `torn` says so."""
        return [line for line in read_lines(self.metrics_path)[0] if "step" in line and "kind" in line]

    @property
    def torn(self) -> list[str]:
        """What is said of lines of metrics.jsonl that cannot be read; empty where all can."""
        damaged = read_lines(self.metrics_path)[1]
        if not damaged:
            return []
        lines = f"{len(damaged)} line{'' if len(damaged) == 1 else 's'}"
        return [f"{lines} of {self.metrics_path.name} cannot be read and left out, the first is line {damaged[0]}"]


def _inflated(spec: EncoderSpec) -> str:
    """A line of the card for a backbone of images that was given a third dimension; nothing for others."""
    if not spec.inflated:
        return ""
    from bolus.encoders.building import is_public  # not needed to read a run

    start = "its pretrained weights" if spec.pretrained else "random weights"
    name = spec.backbone if is_public(spec.backbone) else "the encoder of a folder"  # whose path may name people
    return (
        f"- Inflated: {name} is a network of images; {start} were repeated along depth and divided by the "
        "length of the kernel before training\n"
    )


def _changed(before: Recipe, after: Recipe) -> list[str]:
    from bolus.objectives import resolve_objectives  # not needed to read a run

    # A run that was begun before a key existed had its default.
    before = before.model_copy(update={"objectives": resolve_objectives(before)})
    one, other = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    free = {f"training.{key}" for key in FREE}
    return sorted(key for key in one.keys() | other.keys() if key not in free and one.get(key) != other.get(key))


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
