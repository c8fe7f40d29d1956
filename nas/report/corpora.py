"""Scores on each corpus as columns of a small table."""

from collections.abc import Mapping, Sequence
from typing import Any

ByCorpus = Mapping[str, Mapping[str, Any]]  # corpus -> accuracy and eer, what of them it has, each with value, low, high
TITLE = "accuracy % / EER %"


def corpora_of(figures: Sequence[ByCorpus]) -> list[str]:
    """The corpora that any of them names, sorted."""
    return sorted({corpus for own in figures for corpus in own})


def cells(own: ByCorpus, corpora: Sequence[str]) -> list[str]:
    """`93.1 / 12.3` for each corpus, `- / 12.3` where it has no keywords."""
    return [_cell(own.get(corpus, {})) for corpus in corpora]


def _cell(rates: Mapping[str, Any]) -> str:
    shown = [f"{rates[kind]['value']:.1f}" if kind in rates else "-" for kind in ("accuracy", "eer")]
    return " / ".join(shown) if rates else ""


def markdown_table(labels: Sequence[str], rows: Sequence[tuple[Sequence[str], ByCorpus]]) -> list[str]:
    """Lines of a table, a blank one before it: what names a row, then a column a corpus. None where no row has several."""
    corpora = corpora_of([own for _, own in rows])
    if not corpora:
        return []
    header = [*labels, *corpora]
    body = [[*names, *cells(own, corpora)] for names, own in rows]
    return ["", f"By corpus, {TITLE}:", "", *("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *body))]
