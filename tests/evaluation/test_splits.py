"""The audit of what the splits share."""

from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.evaluation.splits import audit_splits


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
