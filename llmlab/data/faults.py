"""What is wrong with a file, and where: one message with file and row for what the readers only fail at."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmlab.errors import LabError

OPENERS = {".gz": "gzip", ".zst": "zstd"}
MAX_LINE = (
    10_000_000  # bytes of a row or a line: tokenizers and readers abort the process, or take minutes, above
)
MAX_COLUMNS = 2_000
MAX_UNPACKED, MAX_RATIO = (
    1 << 30,
    300,
)  # bytes, and times its size, that a packed file may unpack to (text: 3 to 30 times)
FEW_BRACKETS = 500  # openings in a row that no reader is troubled by, however they are nested
SCANNED_OF_STREAM = 64 << 20  # bytes looked at of a file that is read as a stream


def explain(files: list[Path], kind: str, error: BaseException) -> LabError:
    """Returns what is wrong with the first of `files` that cannot be read as `kind` ("text", "json",
    "csv" ...).
    """
    for file in files:
        fault = _fault(file, kind)
        if fault:
            return fault
    text = (" ".join(str(error).split()) or type(error).__name__)[:200]
    return LabError(f"cannot be read as {kind} ({text})", where=str(files[0]))


def numbered(files: list[Path], kinds: list[str], number: int) -> str:
    """Returns file and row of row `number` (from 0) of several files read one after the other."""
    for file, kind in zip(files, kinds, strict=True):
        count = _count(file, kind)
        if count is None:
            break
        if number < count:
            return f"{file}, row {number + 1}"
        number -= count
    return f"{files[0]}, row {number + 1}" if len(files) == 1 else f"{files[0].parent}, row {number + 1}"


def not_utf8(file: Path) -> LabError | None:
    """Returns where a file stops being UTF-8 text, or None."""
    import fsspec

    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with fsspec.open(str(file), "rb", compression="infer") as content:
            while chunk := content.read(1 << 20):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return _fault(file, "text")
    except Exception:  # damaged in another way, which its reader finds
        return None
    return None


def unbounded(file: Path, kind: str, *, most: int | None = None) -> LabError | None:
    """Returns what in a file would abort or hang its reader: a row without end, nesting, nothing but nulls, a
    bomb; or None.

    Args:
        file: a file of text, JSON or CSV.
        kind: "text", "json" or "csv".
        most: bytes to look at; left out, all.
    """
    import fsspec

    size, total, number, first, objects, null = file.stat().st_size, 0, 0, b"", 0, 0
    by_line = False  # whether each line is a row, not part of one that is written over many
    try:
        with fsspec.open(str(file), "rb", compression="infer") as content:
            while (most is None or total < most) and (line := content.readline(MAX_LINE + 1)):
                number, total = number + 1, total + len(line)
                bare = line.strip()
                by_line = by_line or (not first and (bare == b"null" or bare.endswith(b"}")))
                null = null or (number if bare == b"null" else 0)
                first = first or bare[:1]
                array = kind == "json" and first == b"["
                if len(line) > MAX_LINE and not array:
                    return LabError(
                        f"row {number} has more than {MAX_LINE:,} bytes",
                        where=str(file),
                        remedy="split it, or leave it out",
                    )
                if total > MAX_UNPACKED and total > MAX_RATIO * size:
                    return LabError(
                        f"unpacks to more than {MAX_RATIO} times its size",
                        where=str(file),
                        remedy="unpack it first",
                    )
                if kind == "csv" and number == 1 and (columns := line.count(b",") + 1) > MAX_COLUMNS:
                    return _too_wide(file, columns)
                if kind != "json":
                    continue
                if (
                    not array
                    and line.count(b"[") + line.count(b"{") > FEW_BRACKETS
                    and (fault := _too_deep(line))
                ):
                    return LabError(f"row {number} {fault}", where=str(file), remedy="leave it out")
                if not objects and line.startswith(b"{") and (columns := line.count(b'":')) > MAX_COLUMNS:
                    with suppress(ValueError, RecursionError):
                        if (columns := len(json.loads(line))) > MAX_COLUMNS:
                            return _too_wide(file, columns)
                objects += bare not in (b"", b"null")
        if kind == "json" and first == b"[" and (fault := _array_fault(b"".join(_lines(file)))):
            return LabError(fault, where=str(file), remedy="use one JSON object per line")
    except Exception:  # damaged in another way, which its reader finds
        return None
    if kind == "json" and number and not objects:
        return LabError(
            "row 1 is null, not an object, as are all others",
            where=str(file),
            remedy="one JSON object per line",
        )
    if kind == "json" and null and by_line:  # pyarrow, where a block of rows begins with one
        return LabError(f"row {null} is null, not an object", where=str(file), remedy="leave it out")
    return None


def _too_wide(file: Path, columns: int) -> LabError:
    return LabError(
        f"has {columns:,} columns, more than {MAX_COLUMNS:,}",
        where=str(file),
        remedy="keep the columns with text in them",
    )


def _too_deep(text: bytes) -> str:
    try:
        json.loads(text)
    except RecursionError:
        return "is nested too deeply to be read"
    except ValueError:
        return ""
    return ""


def _array_fault(text: bytes) -> str:
    """Returns what in an array of rows aborts its reader: nesting, or a row that is no object (pyarrow,
    where one is null).
    """
    try:
        rows = json.loads(text)
    except RecursionError:
        return "is nested too deeply to be read"
    except ValueError:
        return ""
    wrong = next(((place, row) for place, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    return f"row {wrong[0]} is {_type(wrong[1])}, not an object" if wrong else ""


def _fault(file: Path, kind: str) -> LabError | None:
    if kind in ("parquet", "arrow"):
        return _table_fault(file, kind)
    types: dict[str, tuple[str, int]] = {}
    number = 0
    try:
        for number, line in enumerate(_lines(file), 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                return LabError(
                    f"is not UTF-8 text ({error.reason} in line {number}, byte {error.start + 1})",
                    where=str(file),
                    remedy="convert it with iconv, or leave it out",
                )
            if kind == "json" and text.strip() and not _is_array(file):
                fault = _json_fault(file, number, text, types)
                if fault:
                    return fault
    except (OSError, EOFError, ValueError) as error:
        return LabError(
            f"is damaged after line {number} ({error})", where=str(file), remedy="unpack or download it again"
        )
    except Exception as error:  # zstandard has an error class of its own
        return LabError(
            f"is damaged after line {number} ({error})", where=str(file), remedy="unpack or download it again"
        )
    if kind == "json" and _is_array(file):
        try:
            json.loads(b"".join(_lines(file)))
        except RecursionError:
            return LabError("is nested too deeply to be read", where=str(file))
        except json.JSONDecodeError as error:
            return LabError(
                f"is not valid JSON ({error.msg} in line {error.lineno}, column {error.colno})",
                where=str(file),
            )
    if kind == "csv":
        return _csv_fault(file)
    return None


def _json_fault(file: Path, number: int, text: str, types: dict[str, tuple[str, int]]) -> LabError | None:
    """Returns what is wrong with a line of JSONL;
    `types` remembers the type of each column and where it was seen.
    """
    try:
        row = json.loads(text)
    except RecursionError:
        return LabError(
            f"row {number} is nested too deeply to be read", where=str(file), remedy="leave it out"
        )
    except json.JSONDecodeError as error:
        truncated = (
            " (it seems truncated)"
            if error.pos >= len(text.rstrip()) - 1 or "Unterminated" in error.msg
            else ""
        )
        return LabError(
            f"row {number} is not valid JSON{truncated}: {error.msg} at column {error.colno}",
            where=str(file),
            remedy="fix or remove that line",
        )
    if not isinstance(row, dict):
        return LabError(
            f"row {number} is {_type(row)}, not an object", where=str(file), remedy="one JSON object per line"
        )
    for column, value in row.items():
        if value is None:
            continue
        before, seen = types.setdefault(column, (_type(value), number))
        if before != _type(value):
            return LabError(
                f"row {number}: column {column!r} is {_type(value)}, but {before} in row {seen}",
                where=str(file),
                remedy="give the column one type",
            )
    return None


def _csv_fault(file: Path) -> LabError | None:
    text = io.StringIO(b"".join(_lines(file)).decode("utf-8"))
    number = width = 0
    try:
        for number, row in enumerate(csv.reader(text)):
            width = width or len(row)
            if len(row) > width:
                return LabError(
                    f"row {number} has {len(row)} columns instead of {width}",
                    where=str(file),
                    remedy="quote its commas",
                )
    except csv.Error as error:
        return LabError(
            f"cannot be read as csv after row {number} ({error})", where=str(file), remedy="is it JSON?"
        )
    return None


def _table_fault(file: Path, kind: str) -> LabError | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if kind == "parquet":
            table = pq.ParquetFile(file)
            for group in range(table.num_row_groups):
                table.read_row_group(group)
        else:
            with pa.memory_map(str(file)) as content:
                try:
                    pa.ipc.open_stream(content).read_all()
                except pa.ArrowInvalid:
                    pa.ipc.open_file(content).read_all()
    except (pa.ArrowException, OSError) as error:
        text = " ".join(str(error).split())[:160]
        return LabError(
            f"is damaged or not a {kind} file ({text})", where=str(file), remedy="download or write it again"
        )
    return None


def _lines(file: Path) -> Iterator[bytes]:
    import fsspec

    with fsspec.open(str(file), "rb", compression="infer") as content:
        yield from content


def _is_array(file: Path) -> bool:
    return next(_lines(file), b"").lstrip()[:1] == b"["


def _count(file: Path, kind: str) -> int | None:
    """Returns the number of rows of a file, or None where it cannot be told cheaply."""
    if kind == "parquet":
        import pyarrow.parquet as pq

        return int(pq.ParquetFile(file).metadata.num_rows)
    if kind == "json" and not _is_array(file):
        return sum(1 for line in _lines(file) if line.strip())
    return None


def _type(value: Any) -> str:
    return {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        type(None): "null",
    }[type(value)]
