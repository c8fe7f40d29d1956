"""The small columns of a table as text, whatever wrote it: one reader for corpora and trial lists.

Null, and text that is empty or blank, is nothing known. Text is taken in Unicode's composed form (NFC): macOS writes names of files
in another one, and one word would be two keywords. Dictionaries and large strings are text. Whole numbers are text in decimal;
those of a ClassLabel (Hugging Face datasets) are the words in the file's metadata, and -1 is nothing known. All else is refused.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trainers.speech.files import composed


def text_columns(path: Path, table: pa.Table, names: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """The named columns as strings, and what is to be said of how they were taken.

    Raises ValueError, naming file and column, for what is no text, no whole number, or a number that its ClassLabel lacks.
    """
    labels, remarks, columns = class_labels(table.schema), list[str](), []
    for name in names:
        column, words = _plain(table[name]), labels.get(name)
        if words is not None and pa.types.is_integer(column.type):
            columns.append(_named(path, name, column, words))
            remarks.append(f"{path.name}: {name} is a ClassLabel; its numbers are taken as {', '.join(words[:3])}...")
            continue
        text = _as_text(path, name, column)
        if not _is_text(column.type) and not pa.types.is_null(column.type) and name in ("keyword", "split"):
            remarks.append(f"{path.name}: {name} is {column.type}; its numbers are taken as words")
        known = _without_blanks(text)
        if blank := known.null_count - text.null_count:
            remarks.append(f"{path.name}: {blank:,} empty texts in {name} are taken as not known")
        columns.append(known)
    return pa.table(dict(zip(names, columns, strict=True)), metadata=table.schema.metadata), remarks


def class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """The words of each ClassLabel that Hugging Face datasets wrote into a file's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: [*map(str, names)] for name, names in _labels(features)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _labels(features: dict[str, dict[str, object]]) -> Iterator[tuple[str, list[object]]]:
    for name, feature in features.items():
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        if isinstance(names, list):
            yield name, names


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _as_text(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_floating(kind):  # pandas makes floats of whole numbers beside nulls
        try:
            column = pc.if_else(pc.is_nan(column), None, column).cast(pa.int64())
        except pa.ArrowInvalid:
            raise ValueError(f"{path}: {name} has numbers that are not whole: write text or whole numbers") from None
    elif not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ValueError(f"{path}: {name} cannot be read as text: it is {kind}; write text or whole numbers")
    return _composed(column.cast(pa.string()))


def _composed(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """In Python: Arrow's own `utf8_normalize` (25.0) gives the decomposed form whichever it is asked for."""
    if pc.all(pc.string_is_ascii(text)).as_py() in (True, None):
        return text
    return pa.chunked_array([pa.array([known and composed(known) for known in text.to_pylist()], pa.string())])


def _named(path: Path, name: str, column: pa.ChunkedArray, words: list[str]) -> pa.ChunkedArray:
    unknown = [value for value in pc.unique(column).to_pylist() if value is not None and not -1 <= value < len(words)]
    if unknown:
        raise ValueError(f"{path}: {name} has the number {unknown[0]}, and its ClassLabel has {len(words)} words, from 0")
    numbers = pc.if_else(pc.less(column, 0), None, column)
    taken = pa.array(map(composed, words), pa.string()).take(_whole(numbers))
    return _without_blanks(pa.chunked_array([taken]))


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _without_blanks(text: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), None, text)
