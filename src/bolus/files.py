"""Files that appear whole or not at all, and plain data as strict JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bolus.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # a full disk, a used quota, a limit on a file


def check_ending(path: Path, option: str, *endings: str) -> None:
    """Raise UsageError where a file to write is called like one of another kind, such as the table.

    >>> check_ending(Path("table.csv"), "-o", ".yaml", ".yml")
    Traceback (most recent call last):
    bolus.errors.UsageError: -o: expected a file name that ends in .yaml or .yml, found 'table.csv'
    """
    if path.suffix.lower() not in endings:
        raise UsageError(f"{option}: expected a file name that ends in {' or '.join(endings)}, found {path.name!r}")


MOST_VALUES = 1_000_000  # in a YAML file, aliases written out

_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


class NotRegularError(OSError):
    """What stands at a path is no file with an end, so that reading it could wait or go on for ever; or no path at all.

    Its message names no path.
    """


def check_regular(path: Path | str) -> os.stat_result:
    """The state of a file, through links, where it is one that ends; pipes, devices and folders are not.

    Raises:
        NotRegularError: it is something else, or no file can have such a name.
        OSError: it is not there, or cannot be reached.

    >>> check_regular("/dev/null")
    Traceback (most recent call last):
    bolus.files.NotRegularError: expected a file, found a device
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - a million of them are looked at
    except ValueError:  # a zero byte, or letters that the system cannot write
        raise NotRegularError("expected a path, found characters that no path can have") from None
    if not stat.S_ISREG(found.st_mode):
        what = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "a device")
        raise NotRegularError(f"expected a file, found {what}")
    return found


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place in one step, once it has been written and is on the disk.

    Where writing raises, the temporary file goes and `path` stays what it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(folder, "a.txt").read_text()
    'whole'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which is new or empty, that takes its place in one step once it is written.

    Where writing raises, the temporary folder goes and `folder` stays what it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     with making(Path(place, "a")) as temporary:
    ...         _ = (temporary / "b.txt").write_text("whole")
    ...     [path.name for path in Path(place).rglob("*")]
    ['a', 'b.txt']
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.is_dir():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Raise UsageError where a folder that is to be made is there already, with files in it.

    >>> check_new(Path(__file__))
    Traceback (most recent call last):
    bolus.errors.UsageError: ...files.py is there already; choose a folder that is empty or new
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; choose a folder that is empty or new")


def put_in_place(temporary: Path, path: Path) -> None:
    """Let a file or folder that has been written take the place of `path`, once it is on the disk."""
    flush(temporary)
    temporary.replace(path)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk; systems that know no such thing do not wait."""
    if path.is_dir():
        if os.name == "posix":
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def tensors_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: in memory of the processor, each its own."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor] | Mapping[str, npt.NDArray[np.generic]], facts: Mapping[str, str]
) -> None:
    """Write a safetensors file.

    Args:
        path: of the file, which `replacing` or `making` puts in place.
        tensors: name -> tensor as `tensors_of` gives it, or array.
        facts: texts of the header.

    Raises:
        OSError: the file cannot be written, as on a full disk; safetensors itself raises an error of its own.
    """
    import numpy as np
    from safetensors import SafetensorError

    if all(isinstance(value, np.ndarray) for value in tensors.values()):
        from safetensors.numpy import save_file
    else:
        from safetensors.torch import save_file
    try:
        save_file(dict(tensors), path, metadata=dict(facts) or None)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write plain data as `strict_json`, indented, likewise whole or not at all."""
    write_text(path, _indented(_finite(value)) + "\n")


def strict_json(value: Any) -> str:
    """Plain data as JSON that any program reads: what is not finite is null, letters stay what they are.

    >>> strict_json({"dice": float("nan"), "who": ("Müller", 1)})
    '{"dice": null, "who": ["Müller", 1]}'
    """
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _indented(value: Any, depth: int = 0) -> str:
    """As `json.dumps` with an indent of 1 writes it, but for a list of text, of which there may be millions, faster."""
    gap = "\n" + " " * depth
    if isinstance(value, list) and set(map(type, value)) == {str}:
        items = json.dumps(value, ensure_ascii=False, separators=(f",{gap} ", ""))[1:-1]
        return f"[{gap} {items}{gap}]"
    if isinstance(value, dict) and set(map(type, value)) == {str}:
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_indented(item, depth + 1)}" for key, item in value.items()]
        return "{" + gap + " " + f",{gap} ".join(parts) + gap + "}"
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).replace("\n", gap)


def load_yaml(text: str) -> Any:
    """A YAML text as plain data; whatever PyYAML gives up on is a YAMLError, as is what unfolds to too much.

    >>> load_yaml("[" * 5000)
    Traceback (most recent call last):
    yaml.error.MarkedYAMLError: it is nested too deeply
    """
    import yaml

    try:
        data = yaml.safe_load(text)
        if _weigh(data, {}) > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"it unfolds to more than {MOST_VALUES:,} values")
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="it is nested too deeply") from None
    except (ValueError, TypeError, OverflowError) as error:  # of dates and numbers that are none
        raise yaml.MarkedYAMLError(problem=str(error).splitlines()[0][:100]) from None
    return data


def load_json(text: str | bytes) -> Any:
    """A JSON text as plain data; ValueError where it is none, and where it is nested too deeply.

    >>> load_json("[" * 100_000)
    Traceback (most recent call last):
    ValueError: it is nested too deeply
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    r"""The objects of a file of JSON lines, none where there is no file, and the numbers of lines that are none.

    A process that is killed, or a machine that stops, can leave a line half written, or bytes that are no text.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.jsonl").write_bytes(b'{"step": 1}\n{"st\xff')
    ...     read_lines(Path(folder, "a.jsonl"))
    ([{'step': 1}], [2])
    """
    found, damaged = list[dict[str, Any]](), list[int]()
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        try:
            value = load_json(line) if line.strip() else {}
        except ValueError:
            value = None
        if isinstance(value, dict):
            found += [value] if value else []
        else:
            damaged.append(number)
    return found, damaged


def _weigh(value: Any, known: dict[int, int]) -> int:
    """How many values there are once each alias is written out."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_VALUES + 1  # until it is known: what holds itself has no end
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_weigh(each, known) for each in inner)
    return known[id(value)]


def _finite(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list) and set(map(type, value)) == {str}):  # may be millions
        return value
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
