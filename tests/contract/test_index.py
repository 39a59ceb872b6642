"""Behavior of every passage index, on tantivy and OpenSearch, compared with BM25 from the formula."""

# ruff: noqa: F811 - fixtures are imported and then named as parameters

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from services.retriever.cluster import Cluster
from services.retriever.indexes import CorpusIndexes, EmbeddedIndexes, OpenSearchIndexes
from tests.contract.selection_bm25 import NaiveBM25
from tests.contract.selection_indexes import BuildIndex, build_index, cluster, indexes, new_key  # noqa: F401 - fixtures
from tests.support import shared_data
from tlm_core.corpus.passages import Passage
from tlm_core.errors import Conflict, IndexMismatch, NotFound
from tlm_core.selection.index import MAX_TERMS, Hit
from tlm_core.selection.text_analysis import terms


def passages_of(texts: Sequence[str]) -> list[Passage]:
    return [Passage(f"p{number:05d}", text, f"source-{number % 3}") for number, text in enumerate(texts)]


def random_texts(count: int, *, longest: int, seed: int) -> list[str]:
    """Texts of words with natural frequencies: the n-th word is drawn in proportion to 1 / n."""
    rng = random.Random(seed)
    words = [f"word{number}" for number in range(1, 2000)]
    weights = [1 / number for number in range(1, 2000)]
    return [" ".join(rng.choices(words, weights, k=rng.randint(1, longest))) for _ in range(count)]


def assert_same(hits: list[Hit], expected: list[Hit], where: str = "") -> None:
    """Scores equal to 1 in 10,000, and the same passages wherever scores differ by more."""
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], rel=1e-4), where
    for hit, reference in zip(hits, expected, strict=True):
        if hit.id != reference.id:
            near = [other.id for other in expected if other.score == pytest.approx(hit.score, rel=1e-4)]
            assert hit.id in near or near[-1] == expected[-1].id, where


def test_scores_and_order_match_the_formula(build_index: BuildIndex) -> None:
    passages = passages_of(random_texts(400, longest=300, seed=1))
    index, naive = build_index(passages), NaiveBM25(passages)
    queries = random_texts(60, longest=60, seed=2)
    for query, hits in zip(queries, index.search(queries, 20), strict=True):
        assert_same(hits, naive.search(query, 20), query)


def test_repeated_query_word_counts_each_time(build_index: BuildIndex) -> None:
    index = build_index(passages_of(["apple", "apple pear", "pear plum", "plum"]))
    once, thrice = index.search(["plum", "plum plum plum"], 4)
    assert [hit.score for hit in thrice] == pytest.approx([3 * hit.score for hit in once], rel=1e-5)


def test_ties_are_sorted_by_id_also_at_rank_k(build_index: BuildIndex) -> None:
    marks = ["{}", "{}!", "({})", "{}.", "- {}"]
    tied = [Passage(f"t{number:04d}", marks[number % 5].format("the same words"), "s") for number in range(300)]
    random.Random(3).shuffle(tied)
    index = build_index([*tied, Passage("best", "the same same words", "s"), Passage("other", "quite different", "s")])
    [hits] = index.search(["words the same same"], 12)
    assert [hit.id for hit in hits] == ["best", *(f"t{number:04d}" for number in range(11))]
    assert len({hit.score for hit in hits[1:]}) == 1


def test_search_returns_all_hits_if_fewer_than_k(build_index: BuildIndex) -> None:
    index = build_index(passages_of(["red fox", "red hen", "blue whale"]))
    assert [hit.id for hit in index.search(["red"], 50)[0]] == ["p00000", "p00001"]


@pytest.mark.parametrize("query", ["", "   ", "?!… —", "absent", "\u200b"])
def test_query_without_a_known_word_has_no_hits(build_index: BuildIndex, query: str) -> None:
    index = build_index(passages_of(["some words", "other words"]))
    assert index.search([query, "words"], 5)[0] == []
    assert len(index.search([query, "words"], 5)[1]) == 2


@pytest.mark.parametrize(
    "query",
    [
        'text:fox AND NOT (hen OR "', "*", "fox~2 h?n /.*/ [a TO z}", "\\", "id:p00001", "fox^1e9", "+-&&||!(){}",
        '{"match_all":{}}', "fox\n{}\n{}", "\x01\x02 fox \x7f", "<script>fox</script>", "$(fox)", "%s fox %n",
    ],
)  # fmt: skip
def test_query_text_is_never_query_syntax(build_index: BuildIndex, query: str) -> None:
    passages = passages_of(["a red fox", "a white hen", "a to z", "match all of them"])
    naive = NaiveBM25(passages, lambda text: terms(text, "standard"))
    assert_same(build_index(passages).search([query], 4)[0], naive.search(query, 4))


def test_query_of_five_thousand_words_uses_its_best_terms(build_index: BuildIndex) -> None:
    rng = random.Random(5)
    words = [f"w{number}" for number in range(4000)]
    passages = passages_of([" ".join(rng.choices(words, k=60)) for _ in range(300)])
    index, naive = build_index(passages), NaiveBM25(passages)
    long = " ".join(rng.choices(words, k=5000))
    assert len(set(long.split())) > MAX_TERMS
    assert_same(index.search([long], 20)[0], naive.search(long, 20))


@pytest.mark.parametrize("query", ["fox " * 3000, " ".join(f"x{n}" for n in range(MAX_TERMS)) + " fox"])
def test_clause_limit_is_never_an_error(build_index: BuildIndex, query: str) -> None:
    passages = passages_of(["red fox", "grey fox grey", "hen", *(f"x{number}" for number in range(MAX_TERMS))])
    index, naive = build_index(passages), NaiveBM25(passages)
    assert_same(index.search([query], 30)[0], naive.search(query, 30))


def test_words_of_any_script_match_in_any_case(build_index: BuildIndex) -> None:
    texts = [
        "Größe ÜBER alles",
        "ΟΔΥΣΣΕΥΣ",
        "Ёлка зелёная",
        "the user's e-mail",
        "pi is 3.14",
        "naïve 😀",
        "東京タワー",
    ]
    index = build_index(passages_of(texts))
    queries = ["grösse größe", "οδυσσευσ", "ЁЛКА", "USER'S", "3.14", "😀", "東"]
    assert [[hit.id for hit in hits] for hits in index.search(queries, 3)] == [[f"p{n:05d}"] for n in range(7)]


@pytest.mark.parametrize(
    ("language", "texts", "query"),
    [
        ("zh", ["自然语言处理是人工智能的一个领域", "今天天气很好", "语言模型处理文本"], "自然语言处理"),
        ("ja", ["自然言語処理の研究", "カタカナの言葉です", "今日は良い天気"], "言語の処理"),
        ("th", ["ภาษาไทยไม่มีช่องว่าง", "วันนี้อากาศดี", "เรียนภาษาอังกฤษ"], "ภาษาไทย"),
        ("ko", ["자연어처리를 공부한다", "오늘은 날씨가 좋다", "한국어 자연어"], "자연어처리"),
    ],
)
def test_languages_without_blanks_match_by_character_pairs(
    build_index: BuildIndex, language: str, texts: list[str], query: str
) -> None:
    passages = passages_of(texts)
    naive = NaiveBM25(passages, lambda text: terms(text, "bigrams"))
    [hits] = build_index(passages, language).search([query], 3)
    assert hits[0].id == "p00000"
    assert_same(hits, naive.search(query, 3))


def test_fetch_returns_the_original_passages(build_index: BuildIndex) -> None:
    passages = passages_of(["Text mit Ümlaut\nund Zeile", "  blanks  around ", "emoji 😀", "x" * 40_000])
    index = build_index(passages)
    assert index.fetch([p.id for p in passages]) == {p.id: p for p in passages}
    assert index.fetch([]) == {}
    assert index.count() == 4
    with pytest.raises(NotFound, match="missing"):
        index.fetch(["p00001", "missing"])


def test_ids_lists_every_id_once(build_index: BuildIndex) -> None:
    passages = passages_of([f"number {number}" for number in range(5500)])
    names = [name for batch in build_index(passages).ids() for name in batch]
    assert sorted(names) == [p.id for p in passages]


def test_passage_added_twice_is_stored_once(indexes: CorpusIndexes) -> None:
    key, passages = new_key(), passages_of(["one", "two"])
    index = indexes.begin(key, "en")
    index.add(passages)
    index.add([*passages, Passage("p9", "three", "s")])
    index.commit(3)
    assert index.count() == 3
    assert [len(hits) for hits in index.search(["one"], 5)] == [1]
    with pytest.raises(Conflict):
        index.add(passages)
    indexes.drop(key)


def test_index_of_the_wrong_size_is_never_used(indexes: CorpusIndexes) -> None:
    key = new_key()
    index = indexes.begin(key, "en")
    index.add(passages_of(["one", "two"]))
    with pytest.raises(IndexMismatch, match="its own id"):
        index.commit(3)
    index.close()
    with pytest.raises(NotFound):
        indexes.open(key)
    indexes.drop(key)


def test_interrupted_load_can_be_repeated(indexes: CorpusIndexes) -> None:
    key, passages = new_key(), passages_of(["one", "two", "three"])
    interrupted = indexes.begin(key, "en")
    interrupted.add(passages[:2])
    interrupted.close()
    with pytest.raises(NotFound):
        indexes.open(key)
    repeated = indexes.begin(key, "en")
    repeated.add(passages)
    repeated.commit(3)
    repeated.close()
    assert len(indexes.open(key).search(["one two three"], 5)[0]) == 3
    indexes.drop(key)
    indexes.drop(key)
    with pytest.raises(NotFound):
        indexes.open(key)


@pytest.mark.opensearch
def test_several_shards_score_like_one_for_any_query_length(cluster: Cluster) -> None:
    rng, words = random.Random(7), [f"w{number}" for number in range(4000)]
    passages = passages_of([" ".join(rng.choices(words, k=60)) for _ in range(300)])
    key, sharded = new_key(), OpenSearchIndexes(cluster, shards=3)
    index = sharded.begin(key, "en")
    index.add(passages)
    index.commit(len(passages))
    short = [" ".join(rng.choices(words, k=30)) for _ in range(20)]
    few, many = " ".join(rng.choices(words[:900], k=1500)), " ".join(rng.choices(words, k=5000))
    assert len(set(few.split())) < MAX_TERMS < len(set(many.split()))
    naive, queries = NaiveBM25(passages), [*short, few, many]
    for query, hits in zip(queries, index.search(queries, 10), strict=True):
        assert_same(hits, naive.search(query, 10), query)
    sharded.drop(key)


HARD_TEXTS = [
    "can't won't rock'n'roll O’Reilly ‘quoted’ 'tis users' x'1 1'x 1'2",
    "3.14 1,000 1;2 1.a a.1 U.S.A. e.g. v1.2.3 0x1F 1e-9 1st B2B a1b2 9a",
    "snake_case __init__ _ __ a_ _a 1_000 a_.b",
    "foo:bar 12:30 ns::name http://a.b/c?d=e a@b.co #tag C++ C#",
    "don\u2024t soft\u00adhyphen zero\u200bwidth zero\u200djoin",
    "ÀÉ ŉ ſ İstanbul ı ß ẞ Σίσυφος ΣΑΣ ǅ ﬁ Ａｂ１２",
    "漢字かなカタカナ混じり文 ｶﾀｶﾅ 한국어 조선말 ภาษาไทย ລາວ မြန်မာ ខ្មែរ",
    "שלום צה\"ל ג'ירף ג' \"ציטוט\" عربي لغة हिन्दी தமிழ்",
    "😀😃 👨\u200d👩\u200d👧 🇩🇪🇫🇷 1️⃣ © ® ™ ↔ ☎️ 👍🏽",
    "10° ±5 µm ª º ² ½ № Å … — – • · a·b 1·2 a‧b",
    "a\tb\nc\r\nd\x0be\u00a0f\u2028g",
    "x" * 600 + " " + "y" * 255 + " " + "z" * 256,
    "",
]  # fmt: skip


def analyzed(cluster: Cluster, texts: Sequence[str]) -> list[str]:
    response = cluster.call("POST", "/_analyze", body={"analyzer": "standard", "text": list(texts)})
    return [token["token"] for token in response["tokens"]]


@pytest.mark.opensearch
@pytest.mark.parametrize("text", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_terms_match_the_standard_analyzer(cluster: Cluster, text: str) -> None:
    assert terms(text, "standard") == analyzed(cluster, [text])


@pytest.mark.opensearch
@pytest.mark.data
def test_terms_match_the_standard_analyzer_on_real_text(cluster: Cluster) -> None:
    texts = [passage.text for passage in real_passages(every=160)]
    for start in range(0, len(texts), 20):
        part = texts[start : start + 20]
        assert [term for text in part for term in terms(text, "standard")] == analyzed(cluster, part)


@pytest.mark.opensearch
@pytest.mark.data
def test_both_indexes_return_the_same_hits_for_real_queries(cluster: Cluster, tmp_path: Path) -> None:
    passages = list(real_passages(every=25))
    lines = (shared_data() / "tasks" / "sciie" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    queries = [json.loads(line)["text"] for line in lines[::32]]
    key, results = new_key(), []
    stores = EmbeddedIndexes(tmp_path / "indexes"), OpenSearchIndexes(cluster, shards=1)
    for store in stores:
        index = store.begin(key, "en")
        index.add(passages)
        index.commit(len(passages))
        results.append(index.search(queries, 50))
        index.close()
        store.drop(key)
    stores[0].close()
    for embedded, opensearch in zip(*results, strict=True):
        assert [hit.id for hit in embedded] == [hit.id for hit in opensearch]
        assert [h.score for h in embedded] == pytest.approx([h.score for h in opensearch], rel=1e-5)


def real_passages(every: int) -> Sequence[Passage]:
    """Each `every`-th passage of the real corpus."""
    passages: list[Passage] = []
    for path in sorted((shared_data() / "corpus").glob("*.parquet")):
        rows = pq.read_table(path, columns=["id", "text", "source"]).to_pylist()[::every]
        passages.extend(Passage(**row) for row in rows)
    return passages
