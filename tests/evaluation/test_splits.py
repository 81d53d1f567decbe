"""The audit of what the splits share."""

from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.evaluation.splits import audit_splits, near_duplicates


def test_content_in_two_splits_is_counted_once_and_repeats_inside_one_are_not() -> None:
    """Prevents a leak from hiding, and duplicates inside a split from looking like one."""
    audit = audit_splits({"pool/train": ["a", "a", "b"], "pool/test": ["c", "b"], "queries/test": ["b", "d"]})
    sizes = {"pool/train": 3, "pool/test": 2, "queries/test": 2}
    assert audit == {"disjoint": False, "shared_contents": 1, "sizes": sizes}
    assert audit_splits({"pool/train": ["a", "a"], "pool/test": ["c"]})["disjoint"]


@given(st.dictionaries(st.text("xyz", max_size=2), st.lists(st.integers(0, 20).map(str)), max_size=4))
@settings(max_examples=50, deadline=None)
def test_shared_contents_are_those_held_by_two_splits(contents: dict[str, list[str]]) -> None:
    """Prevents comparing neighbouring splits only."""
    everything = {content for hashes in contents.values() for content in hashes}
    shared = [c for c in everything if sum(c in hashes for hashes in contents.values()) > 1]
    audit = audit_splits(contents)
    assert audit["shared_contents"] == len(shared)
    assert audit["disjoint"] == (not shared)


def test_a_text_that_differs_in_case_punctuation_and_numbers_alone_is_a_near_duplicate() -> None:
    """Prevents a template filled anew from passing as a text that training has not shown."""
    train = ["What is 17 + 4? It is 21.", "Bread is made of flour", "?!"]
    near = ["what is 3 + 1,000.5 it is 8", "BREAD -- is_made of flour!", "bread is made of ﬂour"]
    far = ["What is seventeen + 4? It is 21.", "Bread is made of water", "Bread is made", "?!...", ""]
    assert near_duplicates(train, near) == 3
    assert near_duplicates(train, far) == 0
    assert near_duplicates(iter(train), [*near, *far, near[0]]) == 4
    assert near_duplicates([], near) == near_duplicates(train, []) == 0


def test_vowels_that_are_marks_tell_words_apart() -> None:
    """Prevents texts of scripts whose vowels are marks from equalling all that have the same consonants."""
    assert near_duplicates(["यह कि है?"], ["यह की है", "यह कि है!", "यह, कि है"]) == 2
    assert near_duplicates(["a\u0301\u0323 word"], ["A\u0323\u0301 WORD.", "a word"]) == 1
    assert near_duplicates(["\u2764\ufe0f", "a word"], ["\u2600\ufe0f", "a word \u2600\ufe0f"]) == 1


@given(st.text(max_size=20), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_every_text_with_a_word_is_near_itself_however_it_is_written(text: str, number: int) -> None:
    """Prevents a normal form that depends on what it is to ignore."""
    written = [f"word {text} {number}", f"  WORD, {text}\n({number + 1})!"]
    assert near_duplicates([written[0]], written) == 2
