"""Text from whatever wrote a table: what is not known, what is a number, what is a ClassLabel."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.speech.columns import text_columns

HERE = Path("speech.parquet")


def read(column: Any, names: list[str] | None = None) -> tuple[list[str | None], list[str]]:
    """The column as keywords, with the words of a ClassLabel where there are names."""
    features = {"keyword": {"names": names, "_type": "ClassLabel"}, "audio": {"_type": "Audio"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    table, remarks = text_columns(HERE, pa.table({"keyword": column}, metadata=metadata), ["keyword"])
    assert table.schema.field("keyword").type == pa.string()
    return table["keyword"].to_pylist(), remarks


@given(st.lists(st.none() | st.text()), st.sampled_from([pa.string(), pa.large_string()]), st.booleans())
def test_text_stays_and_what_is_blank_is_not_known(texts: list[str | None], kind: pa.DataType, encoded: bool) -> None:
    texts = [text.encode("utf-8", "ignore").decode() if text else text for text in texts]
    column = pa.array(texts, kind)
    found, remarks = read(column.dictionary_encode() if encoded else column)
    assert found == [unicodedata.normalize("NFC", text) if text and text.strip() else None for text in texts]
    assert bool(remarks) == any(text is not None and not text.strip() for text in texts)


@given(st.lists(st.none() | st.integers(-(2**40), 2**40)))
def test_whole_numbers_are_their_digits(numbers: list[int | None]) -> None:
    assert read(pa.array(numbers, pa.int64()))[0] == [None if number is None else str(number) for number in numbers]


def test_floats_of_pandas_are_whole_numbers_beside_nulls() -> None:
    assert read(pa.array([19.0, None, float("nan")]))[0] == ["19", None, None]


def test_the_numbers_of_a_class_label_are_its_words() -> None:
    found, remarks = read(pa.array([1, 0, -1, None]), ["no", "yes"])
    assert found == ["yes", "no", None, None] and "ClassLabel" in remarks[0]
    assert read(pa.array(["yes"]), ["no", "yes"]) == (["yes"], [])  # words already


def test_numbers_without_words_are_remarked_on() -> None:
    assert "keyword is int64" in read(pa.array([3, 4]))[1][0]


@pytest.mark.parametrize(
    ("column", "names", "message"),
    [
        (pa.array([2]), ["no", "yes"], "number 2, and its ClassLabel has 2 words"),
        (pa.array([0.5]), None, "not whole"),
        (pa.array([True]), None, "it is bool"),
        (pa.array([["yes"]]), None, "it is list"),
    ],
)
def test_what_is_neither_is_refused(column: Any, names: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"speech.parquet: keyword .*{message}"):
        read(column, names)


def test_a_column_of_nulls_is_nothing_known() -> None:
    assert read(pa.nulls(2)) == ([None, None], [])


def test_one_word_in_two_forms_of_unicode_is_one_word() -> None:
    assert len(set(read(pa.array(["se\u0301", "s\u00e9"]))[0])) == 1
    assert set(read(pa.array([0, 1]), ["se\u0301", "s\u00e9"])[0]) == {"s\u00e9"}
