"""Ranking rules of every index: order, ties, and the terms of long queries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tlm_core.selection.index import MAX_TERMS, Hit, best_terms, ranked, tie_at_cut


def test_hits_are_sorted_by_score_then_id() -> None:
    hits = [Hit("b", 1.0), Hit("c", 2.0), Hit("a", 1.0)]
    assert ranked(hits, 2) == [Hit("c", 2.0), Hit("a", 1.0)]


def test_scores_equal_up_to_rounding_are_a_tie() -> None:
    assert ranked([Hit("b", 10.000001), Hit("a", 10.0)], 5) == [Hit("a", 10.000001), Hit("b", 10.000001)]
    assert ranked([Hit("b", 10.0001), Hit("a", 10.0)], 5) == [Hit("b", 10.0001), Hit("a", 10.0)]


@given(st.lists(st.tuples(st.text("ab", max_size=3), st.sampled_from([1.0, 1.0000001, 2.0, 3.0]))), st.integers(1, 5))
def test_ranking_ignores_input_order(scored: list[tuple[str, float]], k: int) -> None:
    hits = [Hit(*pair) for pair in dict(scored).items()]
    assert ranked(hits, k) == ranked(hits[::-1], k)


def test_tie_at_cut_needs_a_tie_that_reaches_the_end() -> None:
    assert tie_at_cut([3.0, 2.0, 2.0], 2)
    assert not tie_at_cut([3.0, 2.0, 1.0], 2)
    assert not tie_at_cut([3.0, 2.0], 2)


def test_long_queries_keep_the_rarest_terms() -> None:
    counts = {f"t{number}": 1 for number in range(MAX_TERMS + 10)} | {"unknown": 5, "common": 1, "insisted": 60}
    frequency = {"unknown": 0, "common": 900, "insisted": 900}
    best = best_terms(counts, lambda term: frequency.get(term, 3), 1000)
    assert len(best) == MAX_TERMS
    assert best["insisted"] == 60
    assert "unknown" not in best and "common" not in best
    assert list(best) == sorted(best)
