"""Patient-disjoint splits by hash, and the guard that keeps patients of the pretraining out of a test.

A patient's side is a hash of (seed, patient), so that it is known from the first day and does not move when rows or
patients are added. Identifiers are compared as `data.text.identifiers` spells them: 7, 7.0 and "7" are one patient.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bolus.data.cohort.coding import Coded, count_codes, mark_codes
from bolus.data.text.columns import as_python, beside, joined_lines
from bolus.data.text.identifiers import earlier_spellings, identifier_text, spell_identifiers
from bolus.data.text.spelling import clean_text, shape_of
from bolus.errors import CohortError, LeakageError, UsageError, name_rows, suggest
from bolus.site_key import find_secret, open_site_key

Labels: TypeAlias = "npt.NDArray[Any] | pd.Series[Any] | Coded"
SPLIT = ("train", "val", "test")
"""The sides of a split; codes of sides are places in it."""
SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "holdout"), "test"),
}
HASHED = 2**16  # texts that are hashed at a time


def split_patients(
    patients: Labels, *, seed: int, val: float, test: float, fixed: Labels | None = None
) -> npt.NDArray[np.str_]:
    """The side of every row, disjoint in patients.

    Args:
        patients: `[rows]` identifiers; NaN, None and blank text are missing.
        seed: another seed is another split.
        val: expected share of the patients in validation; a small cohort may have none there.
        test: expected share of the patients in test.
        fixed: `[rows]` sides given by the table (the names of `SIDES`, in any case), taken as they are, so that seed
            and shares do not matter.

    Returns:
        str `[rows]`: `train`, `val` or `test`.

    Raises:
        CohortError: rows without a patient, or without a known side in `fixed`.
        LeakageError: a patient on two sides of `fixed`.
        UsageError: shares below 0, or that leave nothing to train on.

    Example:
        >>> sides = split_patients(np.array(["a", "b", "a", "c"]), seed=0, val=0.3, test=0.3)
        >>> bool(sides[0] == sides[2])
        True
    """
    return name_sides(code_sides(patients, seed=seed, val=val, test=test, fixed=fixed))


def name_sides(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.str_]:
    """The sides that codes stand for, `[rows]`.

    >>> name_sides(np.array([2, 0], np.int8)).tolist()
    ['test', 'train']
    """
    return np.array(SPLIT)[codes]


def code_sides(
    patients: Labels, *, seed: int, val: float, test: float, fixed: Labels | None = None
) -> npt.NDArray[np.int8]:
    """What `split_patients` says, as places in `SPLIT`, int8 `[rows]`; arguments and errors are its own."""
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UsageError(f"shares must be at least 0 and leave some to train on, found val {val} and test {test}")
    found = _all_identified(patients)
    if fixed is not None:
        return _fixed_sides(found, fixed)
    share = _uniform(found.values, seed, b"bolus.split")
    train, held_out, tested = (SPLIT.index(side) for side in ("train", "val", "test"))
    sides = np.where(share < test, tested, np.where(share < test + val, held_out, train)).astype(np.int8)
    return np.asarray(sides[found.codes])


def leave_site_out(
    patients: Labels, sites: Labels, *, site: str, seed: int = 0, val: float = 0.1
) -> npt.NDArray[np.str_]:
    """The side of every row where one site is kept for the test: its patients whole, with their rows at other sites.

    Args:
        patients: `[rows]` identifiers; NaN, None and blank text are missing.
        sites: `[rows]` sites, compared as text: 3, 3.0 and "3" are one; missing is no site, so that a patient of whom
            no site is known is not in the test.
        site: the one that is left out.
        seed: of the hash that divides the other patients into training and validation.
        val: expected share of the other patients in validation.

    Returns:
        str `[rows]`: `train`, `val` or `test`.

    Raises:
        CohortError: rows without a patient, no such site, or nobody left to train on.
        UsageError: a share below 0, or that leaves nothing to train on.

    Example:
        >>> patients, sites = np.array(["a", "a", "b"]), np.array(["north", "south", "south"])
        >>> leave_site_out(patients, sites, site="north", val=0).tolist()
        ['test', 'test', 'train']
    """
    return name_sides(code_site_out(patients, sites, site=site, seed=seed, val=val))


def code_site_out(patients: Labels, sites: Labels, *, site: str, seed: int, val: float) -> npt.NDArray[np.int8]:
    """What `leave_site_out` says, as places in `SPLIT`, int8 `[rows]`; arguments and errors are its own."""
    sides = code_sides(patients, seed=seed, val=val, test=0)
    known = _identify(sites)
    assert known.codes.shape == sides.shape, f"{len(known)} sites for {len(sides)} rows"
    names: list[str] = known.values.tolist()
    if identifier_text(site) not in names:
        raise CohortError(f"split.leave_out_site: no site {site!r}; {suggest(site, names)}")
    found, (train, held_out, tested) = _identify(patients), range(3)
    there = np.zeros(len(found.values), np.bool_)
    there[found.codes[known.codes == names.index(identifier_text(site))]] = True
    sides[there[found.codes]] = tested
    if not (sides == train).any():
        if (sides == tested).all():
            raise CohortError(
                f"split.leave_out_site: every patient has rows at {site!r}, so that nobody is left to train on"
            )
        others = count_codes(found.codes[sides == held_out])
        raise CohortError(
            f"split.leave_out_site: without {site!r}, all patients left ({others}) fall into validation and nobody is "
            "left to train on; lower split.val, or take another split.seed"
        )
    return sides


def fold_patients(patients: Labels, *, seed: int, folds: int) -> npt.NDArray[np.int64]:
    """The fold of every row for cross-validation, disjoint in patients and independent of the split: 0 to folds - 1.

    Args:
        patients: `[rows]` identifiers; NaN, None and blank text are missing.
        seed: another seed is another division.
        folds: how many; they hold about equally many patients, and may be empty where there are few.

    Returns:
        int64 `[rows]`.

    Raises:
        CohortError: rows without a patient.
        UsageError: fewer than 2 folds.

    Example:
        >>> fold_patients(np.array(["a", "a"]), seed=0, folds=5).std()
        np.float64(0.0)
    """
    if folds < 2:
        raise UsageError(f"expected at least 2 folds, found {folds}")
    found = _all_identified(patients)
    fold = (_uniform(found.values, seed, b"bolus.fold") * folds).astype(np.int64)
    return np.asarray(np.minimum(fold, folds - 1)[found.codes])


def patient_keys(patients: Labels, salt: str, secret: bytes = b"") -> set[str]:
    """Keyed hashes of the patients, which a run stores in place of identifiers; rows without a patient have none.

    Whoever has salt and secret can test a guessed identifier against the keys, and there are few of seven digits: the
    secret is the site's (`bolus.site_key`) and lies in no folder that bolus writes. Without one, as earlier versions
    hashed, the salt alone is enough.

    Example:
        >>> keys = patient_keys(np.array(["a", "b", "a"]), "salt")
        >>> len(keys), overlap(keys, np.array(["b", "c"]), "salt").tolist()
        (2, [True, False])
    """
    return set(_hexadecimal(_keys(_identify(patients).values, salt, secret)))


def hash_patients(patients: Labels) -> dict[str, Any]:
    """What files say of whom something has seen: `keys` of the patients, in order, a fresh `salt`, and the site's key.

    That, under `key`, is its fingerprint; the key is made at its first use.

    Raises:
        UsageError: as `bolus.site_key.open_site_key`.

    >>> sorted(hash_patients(np.array(["a", "b", "a"])))
    ['key', 'keys', 'salt']
    """
    salt, site = secrets.token_hex(16), open_site_key()
    keys = _keys(_identify(patients).values, salt, site.secret)
    first, second = keys.view(">u8").astype(np.uint64).reshape(-1, 2).T
    return {"salt": salt, "key": site.fingerprint, "keys": _hexadecimal(keys[np.lexsort((second, first))])}


def seen_rows(training: Mapping[str, Any], patients: Labels) -> npt.NDArray[np.bool_] | None:
    """Rows of patients whom something has seen, bool `[rows]`; None where they were hashed with a key that is not here.

    Args:
        training: as of `hash_patients`; without `key`, as of earlier versions, the salt alone was the key.
        patients: `[rows]` identifiers.

    Raises:
        UsageError: as `bolus.site_key.find_secret`.

    >>> training = hash_patients(np.array(["a"]))
    >>> seen_rows(training, np.array(["a", "b"])).tolist(), seen_rows({**training, "key": "0"}, np.array(["a"]))
    ([True, False], None)
    """
    secret = find_secret(str(training.get("key", "")))
    return None if secret is None else overlap(training["keys"], patients, training["salt"], secret)


def overlap(keys: Collection[str], patients: Labels, salt: str, secret: bytes = b"") -> npt.NDArray[np.bool_]:
    """Rows whose patient is among those of the keys: bool `[rows]`; false for a row without a patient.

    Keys of earlier versions, which hashed 7.0 as it stood in the table, are found as well.

    >>> overlap(patient_keys(np.array(["7.0"]), "salt"), np.array(["7", "07", "7.00"]), "salt").tolist()
    [True, False, True]
    """
    keys = frozenset(keys)
    found = _code(patients)
    spellings = [
        [text for text in (identifier_text(value), *earlier_spellings(value)) if text] for value in found.values
    ]
    every = pd.Series([text for texts in spellings for text in texts], dtype=object)
    hashed = iter(_hexadecimal(_keys(every, salt, secret)))
    known = [bool(keys & {next(hashed) for _ in texts}) for texts in spellings]
    return np.asarray(found.spread(np.array(known, bool), missing=False))


def refuse_overlap(training: Mapping[str, Any], patients: Labels, rows_used: npt.ArrayLike, where: str) -> None:
    """Stop where a patient of the pretraining is about to be judged on.

    Args:
        training: as of `hash_patients`; no keys, or keys under a key that is not here: nothing is checked.
        patients: `[rows]` identifiers of the whole table.
        rows_used: positions, or bool `[rows]`, of the rows that are judged on.
        where: what these rows are, for the message ("the test rows of classify pneumonia").

    Raises:
        LeakageError: how many patients and which rows were seen in pretraining.
        CohortError: rows without a patient, of which this cannot be known.

    Example:
        >>> refuse_overlap(hash_patients(np.array(["a", "b"])), np.array(["a", "c"]), [1], "the test rows")
    """
    found = seen_rows(training, patients) if training["keys"] else None
    if found is None:
        return
    used = np.asarray(rows_used)
    used = np.flatnonzero(used) if used.dtype == bool else used.astype(np.int64)
    codes = _identify(patients).codes
    nameless = used[codes[used] < 0]
    if len(nameless):
        raise CohortError(f"{where}: {name_rows(nameless)} have no patient, who may have been in the pretraining")
    seen = used[found[used]]
    if len(seen):
        raise LeakageError(
            f"{where}: expected no patient of the pretraining, found {len(np.unique(codes[seen]))} of "
            f"{len(np.unique(codes[used]))} patients ({name_rows(seen)}); judge on rows that were held out"
        )


def split_digest(split: Labels, patients: Labels) -> str:
    """12 hexadecimal digits that name who is on which side, whatever the order and number of rows.

    Example:
        >>> a = split_digest(np.array(["train", "test"]), np.array(["a", "b"]))
        >>> a == split_digest(np.array(["test", "train", "test"]), np.array(["b", "a", "b"]))
        True
    """
    names, codes = np.unique(np.asarray(split), return_inverse=True)
    return digest_codes(codes, names.tolist(), patients)


def digest_codes(sides: npt.NDArray[Any], names: Sequence[str], patients: Labels) -> str:
    """What `split_digest` says of sides given as places in their names, `[rows]`."""
    found = _identify(patients)
    texts, parts = as_python(found.values), [pa.array([], pa.large_string())]
    for code, name in enumerate(names):
        here = found.codes[sides == code]
        if len(here):
            nobody = ["''"] if here.min() < 0 else []
            used = texts.filter(pa.array(mark_codes(here, len(texts))))
            text = pa.concat_arrays([used, pa.array(nobody, pa.large_string())])
            parts.append(beside(f"({str(name)!a}, ", text, ")"))
    lines = pa.concat_arrays(parts)
    if not pc.all(pc.less_equal(lines[:-1], lines[1:])).as_py():
        lines = lines.take(pc.array_sort_indices(lines))
    return blake2b(joined_lines(lines), digest_size=6).hexdigest()


def _fixed_sides(patients: Coded, fixed: Labels) -> npt.NDArray[np.int8]:
    """Sides as the table gives them, checked."""
    column = _code(fixed)
    assert len(column) == len(patients), f"{len(column)} sides for {len(patients)} rows"
    known = [SIDES.get(clean_text(str(value)).lower()) for value in column.values]
    places = np.array([-1 if side is None else SPLIT.index(side) for side in known], np.int8)
    sides: npt.NDArray[np.int8] = column.spread(places, -1)
    unknown = np.flatnonzero(sides < 0)
    if len(unknown):
        found = sorted({str(value) for value, side in zip(column.values, known, strict=True) if side is None})
        if len(found) > 3:  # no column of sides, perhaps one of identifiers, which are not shown
            found = sorted({shape_of(value) for value in found})
        if column.absent.any():
            found.append("a missing value")
        raise CohortError(
            f"{name_rows(unknown)}: expected train, val or test in the column with the role split, "
            f"found {', '.join(found[:5])}{' and others' if len(found) > 5 else ''}"
        )
    held = np.zeros((len(patients.values), len(SPLIT)), np.bool_)
    held[patients.codes, sides] = True
    torn = held.sum(axis=1) > 1
    if torn.any():
        rows = np.flatnonzero(torn[patients.codes])
        frame = pd.DataFrame({"patient": patients.codes[rows], "side": name_sides(sides[rows])}, index=rows)
        violations = [
            f"{name_rows(group.index)}: one patient, in {' and '.join(sorted(group['side'].unique()))}"
            for _, group in frame.groupby("patient", sort=False)
        ]
        raise LeakageError(f"patients on more than one side of the split: {len(violations)}", violations)
    return sides


def _code(labels: Labels) -> Coded:
    return labels if isinstance(labels, Coded) else Coded.of(pd.Series(np.asarray(labels, dtype=object)))


def _identify(patients: Labels) -> Coded:
    """Identifiers in the spelling that is compared; a code of -1 where there is none."""
    return _code(patients).change(spell_identifiers)


def _all_identified(patients: Labels) -> Coded:
    found = _identify(patients)
    missing = np.flatnonzero(found.absent)
    if len(missing):
        raise CohortError(f"{name_rows(missing)}: expected a patient, found none; without it rows cannot be split")
    return found


def _uniform(texts: pd.Series[Any], seed: int, person: bytes) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each patient, by hash; `person` keeps the uses independent of each other."""
    digests = _digests(texts, blake2b(f"{int(seed)}/".encode(), digest_size=8, person=person))
    return np.asarray((digests.view(">u8").ravel() >> np.uint64(11)) / 2.0**53)


def _keys(texts: pd.Series[Any], salt: str, secret: bytes) -> npt.NDArray[np.uint8]:
    """The keyed hash of each text, `[n, 16]`."""
    person = b"bolus.lineage" if secret else b""
    key = blake2b(salt.encode(), key=secret, person=person).digest()  # a key has at most 64 bytes
    return _digests(texts, blake2b(digest_size=16, key=key, person=b"bolus.patient"))


def _digests(texts: pd.Series[Any], begun: blake2b) -> npt.NDArray[np.uint8]:
    """What a hash that has begun gives for each text, `[n, bytes]`."""
    found = np.empty((len(texts), begun.digest_size), np.uint8)

    def digest(text: str) -> bytes:
        whole = begun.copy()
        whole.update(text.encode())
        return whole.digest()

    for start in range(0, len(texts), HASHED):
        part = texts.iloc[start : start + HASHED].tolist()
        found[start : start + HASHED] = np.frombuffer(b"".join(map(digest, part)), np.uint8).reshape(len(part), -1)
    return found


def _hexadecimal(digests: npt.NDArray[np.uint8]) -> list[str]:
    whole, width = digests.tobytes().hex(), 2 * digests.shape[1]
    return [whole[start : start + width] for start in range(0, len(whole), width)]
