"""Which epoch's encoder is kept."""

from typing import Any

import pytest

from influcoder_ray.evaluation.epochs import best_epoch


def epochs(*figures: float) -> list[dict[str, Any]]:
    names = ("validation_per_query_rho", "validation_aggregated_rho")
    return [
        {"epoch": number, "loss": None, names[0]: figure - 0.1, names[1]: figure + 0.1}
        for number, figure in enumerate(figures)
    ]


@pytest.mark.parametrize(
    ("figures", "fall_back", "kept"),
    [
        ((0.1, 0.3, 0.2), True, 1),
        ((0.4, 0.3, 0.2), True, 0),
        ((0.4, 0.2, 0.3), False, 2),
        ((0.4, 0.3), False, 1),
        ((0.3, 0.3), True, 0),
        ((0.1, 0.2, 0.2), True, 1),
    ],
)
def test_the_best_epoch_is_kept_and_the_untrained_encoder_where_training_did_not_help(
    figures: tuple[float, ...], fall_back: bool, kept: int
) -> None:
    """Prevents an encoder that training made worse from being used, unless somebody wants to see it."""
    assert best_epoch(epochs(*figures), fall_back=fall_back) == kept
