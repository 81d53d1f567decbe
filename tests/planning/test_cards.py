"""A card is told by its name, and one that is not known is not guessed at."""

import pytest
import torch

from influcoder_ray.errors import UserError
from influcoder_ray.planning.cards import find_card, peak_flops_per_second


def test_a_card_has_its_peak_and_an_unknown_one_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a utilisation of a card by another card's peak."""
    card = torch.device("cuda")
    assert peak_flops_per_second(torch.device("cpu"), "float32") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_flops_per_second(card, "bfloat16") == 989.4e12
    assert peak_flops_per_second(card, "tf32") == 494.7e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 NVL")
    assert peak_flops_per_second(card, "bfloat16") is None


@pytest.mark.parametrize(
    ("asked", "card", "peak"),
    [
        ("H100", "NVIDIA H100 PCIe", 756e12),
        ("h100 hbm3", "NVIDIA H100 80GB HBM3", 989.4e12),
        ("L4", "NVIDIA L4", 121e12),
        ("nvidia l40s", "NVIDIA L40S", 362e12),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_a_card_is_found_by_some_words_of_its_name_the_slowest_of_several(
    asked: str, card: str, peak: float
) -> None:
    """Prevents an L4 from being taken for an L40S, and a plan from promising the faster card."""
    assert find_card(asked, "bfloat16") == (card, peak)


@pytest.mark.parametrize("asked", ["B200", "", "H10", "H100 96GB"])
def test_an_unknown_card_is_refused_with_the_known_ones(asked: str) -> None:
    """Prevents an estimate for a card by the figures of another."""
    with pytest.raises(UserError, match=r"^--card: .* is not known; known are .*NVIDIA L4, NVIDIA L40S$"):
        find_card(asked, "bfloat16")
