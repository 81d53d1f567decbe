"""The demo's families of small facts."""

import datetime

from influcoder_ray.demo.facts import small_facts
from influcoder_ray.demo.run import demo_data


def test_facts_are_the_same_on_every_call_and_asked_ones_are_held_out() -> None:
    """A query that stands in the corpus would be attributed to itself."""
    facts = small_facts()
    assert facts == small_facts()
    corpus = {(row["prompt"], row["response"]) for row in facts.corpus.to_pylist()}
    queries = {(row["prompt"], row["response"]) for row in facts.queries.to_pylist()}
    assert len(queries) == 56
    assert not corpus & queries


def test_facts_are_true() -> None:
    """A demo that teaches wrong sums, weekdays or numerals would be no advertisement."""
    values = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}
    seen = set()
    for row in small_facts().corpus.to_pylist():
        family, name = row["id"].split(".", 1)
        seen.add(family)
        if family == "sum":
            first, second = name.split("+")
            assert int(row["response"]) == int(first) + int(second)
        elif family == "weekday":
            assert datetime.date.fromisoformat(name).strftime("%A") in row["response"]
        elif family == "roman":
            digits = [values[letter] for letter in row["response"]]
            following = [*digits[1:], 0]
            pairs = zip(digits, following, strict=True)
            assert sum(-d if d < after else d for d, after in pairs) == int(name)
    assert {"sum", "weekday", "roman", "http", "errno", "character", "entity"} == seen


def test_ids_are_unique_over_corpus_and_queries() -> None:
    """An id that two rows share is refused by the first stage."""
    for table in demo_data():
        ids = table["id"].to_pylist()
        assert len(set(ids)) == len(ids)
