"""A head: what turns frozen embeddings into predictions of one target, as plain arrays that can be kept in a file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from scipy.special import expit, softmax

from bolus.checksums import find_damage, with_checksums, without_checksums
from bolus.data.cohort.split import Labels, hash_patients, seen_rows
from bolus.embedding.nearest import neighbours
from bolus.encoders.backbone import Encoder
from bolus.encoders.modalities import ModalityEncoders
from bolus.errors import EvaluationError
from bolus.evaluation.statistics.metrics import FloatArray, IntArray
from bolus.files import replacing, save_tensors
from bolus.provenance import digest_of

_ARRAYS = ("coef", "intercept", "mean", "scale", "classes")


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted linear, nearest-neighbour or constant prediction; all floats are float64.

    Args:
        kind: `linear`, `knn`, or `constant` where there was nothing to learn.
        task: `classify` or `regress`.
        coef: linear: `[K', D]` coefficients on standardised features, one row for two classes; knn: `[m, D]` normalised
            training embeddings, which are data of the training patients; constant: `[0, D]`.
        intercept: linear: `[K']`; knn: `[m]` training targets (positions in `classes`, or numbers); constant: the class
            probabilities `[K']` or the value `[1]`.
        mean: `[D]`, subtracted from embeddings.
        scale: `[D]`, divides embeddings after that.
        classes: int64 `[K']`, the codes seen in training; empty for regression.
        num_classes: K, width of the predictions; 0 for regression.
        target_mean: added to a linear regression, in the target's unit, after
        target_scale: has multiplied it.
        strength: the penalty or number of neighbours chosen; NaN for a constant.
        validation: the choosing metric's value on validation; NaN where undefined.
        target: name of the target.
        class_names: names of the K codes, if any.
        notes: what a reader must know, in sentences.
        encoder: digest of the weights that the embeddings are of; empty where unknown, as in older files.
        salt: of
        patients: keys (`data.cohort.split.hash_patients`) of those in training and validation; empty where unknown.
        key: fingerprint of the site's key that they are under; empty in older files, where the salt is the key.
    """

    kind: str
    task: str
    coef: FloatArray
    intercept: FloatArray
    mean: FloatArray
    scale: FloatArray
    classes: IntArray
    num_classes: int
    target_mean: float = 0.0
    target_scale: float = 1.0
    strength: float = math.nan
    validation: float = math.nan
    target: str = ""
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    encoder: str = ""
    salt: str = ""
    patients: tuple[str, ...] = ()
    key: str = ""

    def signed(self, weights: str, patients: Labels) -> Head:
        """The head that says whose embeddings it reads, and on whom it was fitted.

        Args:
            weights: `digest_of_encoder` of the encoder whose embeddings it was fitted on.
            patients: `[rows]` identifiers of the training and validation patients; only keyed hashes are kept.
        """
        known = hash_patients(patients)
        return replace(self, encoder=weights, salt=known["salt"], patients=tuple(known["keys"]), key=known["key"])

    def fits(self, encoder: Encoder | ModalityEncoders) -> bool | None:
        """Whether it was fitted on embeddings of these very weights; None where the head does not say."""
        return self.encoder == digest_of_encoder(encoder) if self.encoder else None

    def knows(self, patients: Labels) -> NDArray[np.bool_] | None:
        """Rows of patients that it was fitted on: bool `[rows]`; None where their hashes are under another key."""
        return seen_rows({"keys": self.patients, "salt": self.salt, "key": self.key}, patients)

    def predicts_as(self, other: Head) -> bool:
        """Whether both predict the same of the same encoder's embeddings, whatever else they note."""
        numbers = ("coef", "intercept", "mean", "scale", "classes")
        facts = ("kind", "task", "num_classes", "target_mean", "target_scale", "class_names", "encoder")
        return all(getattr(self, key) == getattr(other, key) for key in facts) and all(
            np.array_equal(getattr(self, key), getattr(other, key)) for key in numbers
        )

    def predict(self, x: ArrayLike) -> FloatArray:
        """Predictions for embeddings `[n, D]`.

        Returns:
            float64: `[n]` probability of class 1 (two classes), `[n, K]` (more classes), `[n]` target (regression).

        Raises:
            EvaluationError: another width than the head was fitted on.

        >>> zero, one = np.zeros(1), np.ones(1)
        >>> head = Head("linear", "regress", coef=np.array([[2.0]]), intercept=one, mean=zero, scale=one,
        ...             classes=np.empty(0, np.int64), num_classes=0)
        >>> head.predict([[3.0]]).tolist()
        [7.0]
        """
        x_nd = np.asarray(x, dtype=np.float64)
        if x_nd.ndim != 2 or x_nd.shape[1] != len(self.mean):
            raise EvaluationError(f"this head needs embeddings [n, {len(self.mean)}], found {x_nd.shape}")
        z_nd = (x_nd - self.mean) / self.scale
        if self.kind == "constant":
            return self.scores(np.repeat(self.intercept[None], len(x_nd), axis=0))
        if self.kind == "knn":
            return self.vote(*neighbours(z_nd, self.coef, int(self.strength)))
        raw = z_nd @ self.coef.T + self.intercept
        if self.task == "classify":
            raw = softmax(raw, axis=1) if len(self.classes) > 2 else expit(np.hstack([-raw, raw]))
        return self.scores(raw)

    def vote(self, index: IntArray, weight: FloatArray) -> FloatArray:
        """Predictions of a knn head from the training rows that are near and their weights, two `[n, k]`."""
        targets, total = self.intercept[index], weight.sum(1)
        if self.task == "regress":
            return self.scores(((weight * targets).sum(1) / total)[:, None])
        shares = [(weight * (targets == c)).sum(1) / total for c in range(len(self.classes))]
        return self.scores(np.stack(shares, axis=1))

    def scores(self, raw: FloatArray) -> FloatArray:
        """What `predict` returns, from `[n, K']` probabilities of the classes seen or `[n, 1]` standardised numbers."""
        if self.task == "regress":
            return np.asarray(raw[:, 0] * self.target_scale + self.target_mean)
        full = np.zeros((len(raw), self.num_classes))
        full[:, self.classes] = raw
        return full[:, 1] if self.num_classes == 2 else full

    def save(self, path: str | Path) -> None:
        """Write the arrays as safetensors, the rest as JSON in its header, with checksums; folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        arrays = {key: np.ascontiguousarray(values.pop(key)) for key in _ARRAYS}
        for key in ("strength", "validation"):
            values[key] = values[key] if math.isfinite(values[key]) else None
        with replacing(path) as temporary:
            about = json.dumps(with_checksums(values, arrays), allow_nan=False)
            save_tensors(temporary, arrays, {"bolus_head": about})

    @classmethod
    def load(cls, path: str | Path) -> Head:
        """Read what `save` wrote.

        Raises:
            EvaluationError: no such file, not a head, or a damaged one.
        """
        path = Path(path)
        if not path.is_file():
            raise EvaluationError(f"no head {path}")
        try:
            with safe_open(path, framework="numpy") as file:
                values: dict[str, Any] = json.loads((file.metadata() or {})["bolus_head"])
                arrays = {key: file.get_tensor(key) for key in _ARRAYS}
            damaged = find_damage(values, arrays)
            values = without_checksums(values) | arrays
        except Exception as error:
            raise EvaluationError(f"{path} is not a head that `Head.save` wrote") from error
        if damaged:
            raise EvaluationError(f"{path} is damaged: its checksum differs ({', '.join(damaged)})")
        for key in ("strength", "validation"):
            values[key] = math.nan if values[key] is None else values[key]
        for key in ("class_names", "notes", "patients"):
            values[key] = tuple(values.get(key, ()))
        return cls(**values)


def digest_of_encoder(encoder: Encoder | ModalityEncoders) -> str:
    """A hash of all weights, those of context blocks included, which stays the same in a file and on any device."""
    return digest_of({"encoder": encoder})
