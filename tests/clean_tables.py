"""Random tables in which nothing is wrong, of columns as hospitals and public sets write them."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

Column = Callable[[np.random.Generator, int], Any]


IDENTIFIERS: list[Callable[[int], Any]] = [
    int,
    float,
    lambda number: f"{number:06d}",
    lambda number: f"P{number:05d}",
    lambda number: f"sub-{number:04d}",
    lambda number: f"patient{number}",
    lambda number: f"site{number % 7}_{number}",
    lambda number: f"{chr(65 + number % 26)}-{number}",
    lambda number: f"1.2.840.113619.{number}.{number % 13}.0",
    lambda number: str(uuid.UUID(bytes=np.random.default_rng(number).bytes(16))),
    lambda number: np.random.default_rng(number).bytes(4).hex(),
    lambda number: 10**9 + number,
]


def among(*values: Any) -> Column:
    return lambda rng, n: rng.choice(values, n)


def whole(low: int, high: int) -> Column:
    return lambda rng, n: rng.integers(low, high, n)


def real(low: float, high: float, digits: int) -> Column:
    return lambda rng, n: rng.uniform(low, high, n).round(digits)


def joined(*classes: str) -> Column:
    return lambda rng, n: ["|".join(rng.permutation(classes)[:k]) for k in rng.integers(1, len(classes) + 1, n)]


def dates(form: str) -> Column:
    def make(rng: np.random.Generator, count: int) -> list[str]:
        start = datetime.datetime(int(rng.integers(1990, 2180)), 1, 1)
        moments = [start + datetime.timedelta(seconds=int(second)) for second in rng.integers(0, 10**9, count)]
        return [moment.strftime(form) for moment in moments]

    return make


# fmt: off
COLUMNS: dict[str, list[Column]] = {
    "attribute:sex": [among("F", "M"), among("male", "female"), whole(0, 2), among(1.0, 2.0), among("F", "M", "O"),
                      among("F")],
    "attribute:age": [whole(0, 96), real(18, 90, 1), lambda rng, n: [f"{age:03d}Y" for age in rng.integers(1, 100, n)],
                      whole(40, 121)],
    "attribute:scanner": [among("Prisma", "Skyra", "SIGNA HDxt", "SIGNA HDx"), among("1.5", "3.0", "7"), whole(0, 12)],
    "site": [among(*"ABCDEFG"), whole(1, 30), among("St. Anna", "North 1", "North 2", "Nord")],
    "label:a": [whole(0, 2), among(0.0, 1.0), among(True, False), among("yes", "no"), among("Y", "N"), whole(0, 5),
                among("0", "1", "2"), among("AD", "CN", "MCI"), among("HER2+", "HER2-", "ER+", "ER-"),
                among("T1a", "T1b", "T2")],
    "label:b": [joined("Edema", "Mass", "Nodule", "No Finding"), among("No Finding", "Effusion", "Effusion|Mass"),
                among("I", "II", "III", "IV"), among("ICD-10 J18", "ICD-10 J18.1")],
    "score:a": [lambda rng, n: rng.normal(0, 1, n), lambda rng, n: rng.normal(27, 5, n).round(),
                lambda rng, n: rng.poisson(3, n), lambda rng, n: rng.lognormal(2, 1, n).round(2), whole(-9, 10),
                whole(0, 101), whole(-1024, 1200), whole(0, 31), real(0, 1, 9)],
    "time": [whole(0, 4000), real(-30, 2000, 2), whole(36526, 45000), dates("%Y-%m-%d"), dates("%Y%m%d"),
             dates("%Y%m%d%H%M%S"), dates("%Y-%m-%d %H:%M:%S"), dates("%d-%b-%Y")],
    "visit": [whole(0, 12), among(1.0, 2.0, 3.0)],
    "laterality": [among("L", "R", "B"), among("OS", "OD")],
    "modality": [among("CT", "MR", "DX"), among("T1w", "T2w", "FLAIR")],
    "series": [lambda rng, n: [f"1.2.840.{k}.{k * 7}" for k in rng.permutation(n)], lambda rng, n: rng.permutation(n)],
}
# fmt: on


def clean_table(seed: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """A random table in which nothing is wrong."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(30, 200))
    number = int(rng.integers(10, rows))
    people = [IDENTIFIERS[seed % len(IDENTIFIERS)](int(code)) for code in rng.permutation(10 * number)[:number]]
    columns = {
        "image": [f"{row}.png" for row in range(rows)],
        "patient": [people[k] for k in rng.integers(0, len(people), rows)],
    }
    roles = {"patient": "patient"}
    for role, kinds in COLUMNS.items():
        if rng.random() < 0.7:
            values = pd.Series(kinds[rng.integers(len(kinds))](rng, rows)).astype(object)
            name = role.partition(":")[2] or role
            name = f"{name}_score" if role.startswith("score:") else name
            columns[name] = values.mask(rng.random(rows) < rng.choice([0, 0.1]), rng.choice(["", "n/a", "NA"]))
            roles[role] = name
    return pd.DataFrame(columns), roles
