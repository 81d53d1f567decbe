"""Which tokens carry an influence: the cosine of two gradients, split over the positions of either.

Shapes: T tokens of an example, F functionals, G numbers of a gradient, D sketch width, R, O, I of a module.

An example's gradient is a sum over its positions (see `capture`): with x_t a module's input, g_t the loss
gradient at its output and s the adapter's scaling,
    dL/dB = s sum_t g_t (A x_t)^T,    dL/dA = s sum_t (B^T g_t) x_t^T.
A product with any fixed direction W, the query's gradient above all, is therefore one too:
    <W_B, dL/dB> = sum_t s (A x_t)^T W_B^T g_t,    <W_A, dL/dA> = sum_t s (B^T g_t)^T W_A x_t.
Position t's contribution is the sum of its terms over all modules, divided by both gradients' lengths: over
the positions of an example contributions add up to its cosine with the query. Both factors are at hand in
the backward pass that gives the gradient, so that nothing is approximated and no gradient is formed.

A position is where a weight is applied: at t the model has read the tokens up to t and goes on to predict
t + 1. A token's contribution is thus what the model learns while it stands on that token, for every loss
behind it that looks back; the last token's is zero, since nothing is predicted from it.

Where influence is taken from sketches that a linear map P has passed through (`attribution.preconditioning`),
W is what the same product is with the gradient itself: W = S^T P^T u for the query's unit feature u, S being
the sketch, and the cosine <u, P S g> / |P S g| splits in the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import AdapterWeights
from influcoder_ray.gradients.capture import summing
from influcoder_ray.gradients.layout import Layout
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.teacher import Teacher

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]

# ("<module>.lora_A" or "<module>.lora_B", (R, columns)) -> directions (F, R, columns) float32 in that matrix;
# of B transposed, as gradients of it arrive.
Directions = Callable[[str, tuple[int, int]], Tensor]

# Of gradients that are held at once for the query's side: a large model's are hundreds of megabytes each.
_HELD_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class TokenInfluence:
    """An influence and how it is spread over tokens.

    Attributes:
        influence: the cosine of the two gradients, or of what the settings let stand for them.
        of_candidate: (T,) what each position of the candidate contributes to it.
        of_query: (T,) what each position of the query does; either adds up to the influence.
    """

    influence: float
    of_candidate: Array
    of_query: Array


def token_influence(
    teacher: Teacher, query: Tokens, candidates: Sequence[Tokens], *, held_bytes: int = _HELD_BYTES
) -> list[TokenInfluence]:
    """The cosine of a query's gradient and each candidate's, split over the tokens of both.

    Gradients are whole, not sketched. Takes a pass over the query, one over the candidates, and one more
    over the query for as many of them as `held_bytes` of gradients hold.

    Args:
        query, candidates: each with a labelled token.

    Raises:
        ValueError: a gradient is zero or not finite, so that it has no direction.
        torch.OutOfMemoryError: an example alone is too large for the device.
    """
    asked = teacher.gradients([query])
    unit_query, _ = _unit_rows(asked, "the query")
    found: list[TokenInfluence] = []
    most = max(1, held_bytes // (4 * teacher.gradient_size))
    for start in range(0, len(candidates), most):
        part = candidates[start : start + most]
        of_candidates, gradients = _passed(teacher, part, _parts(teacher.weights, unit_query), 1)
        units, lengths = _unit_rows(gradients, "a candidate")
        of_query = position_products(teacher, [query], _parts(teacher.weights, units), len(part))[0]
        query_length = float(np.linalg.norm(asked.astype(np.float64)))
        for row, products in enumerate(of_candidates):
            found.append(
                TokenInfluence(
                    influence=float(units[row].astype(np.float64) @ unit_query[0]),
                    of_candidate=products[:, 0] / lengths[row],
                    of_query=of_query[:, row] / query_length,
                )
            )
    return found


def sketched_token_influence(
    teacher: Teacher,
    sketch: CountSketch,
    query: Tokens,
    candidates: Sequence[Tokens],
    transform: Callable[[Rows], Rows],
) -> list[TokenInfluence]:
    """The same where influence is the cosine of sketches that a symmetric linear map has passed through.

    Args:
        transform: P: makes (N, D) of (N, D), its rows in their own length.

    Raises:
        ValueError, torch.OutOfMemoryError: as `token_influence`.
    """
    sketches = [teacher.sketch(part, sketch).sketches for part in ([query], candidates)]
    (unit_query, query_length), (units, lengths) = (
        _unit_rows(transform(side), name)
        for side, name in zip(sketches, ("the query", "a candidate"), strict=True)
    )

    def back(features: Rows) -> Directions:
        # P is symmetric: what a unit feature multiplies in P S g, P times it multiplies in S g.
        rows = torch.from_numpy(transform(features)).to(teacher.device)
        return lambda name, shape: sketch.pull_back(rows, shape, name)

    of_candidates = position_products(teacher, candidates, back(unit_query), 1)
    of_query = position_products(teacher, [query], back(units), len(candidates))[0]
    return [
        TokenInfluence(
            influence=float(units[row].astype(np.float64) @ unit_query[0]),
            of_candidate=products[:, 0] / lengths[row],
            of_query=of_query[:, row] / query_length[0],
        )
        for row, products in enumerate(of_candidates)
    ]


def position_products(
    teacher: Teacher, tokens: Sequence[Tokens], directions: Directions, count: int
) -> list[Array]:
    """What each position adds to the products of an example's gradient with some directions: (T, F) each.

    Args:
        tokens: of N examples, each with a labelled token.
        count: F.

    Raises:
        torch.OutOfMemoryError: an example alone is too large for the device.
    """
    return _passed(teacher, tokens, directions, count, gradients=False)[0]


def _passed(
    teacher: Teacher, tokens: Sequence[Tokens], directions: Directions, count: int, *, gradients: bool = True
) -> tuple[list[Array], Rows]:
    """Products by position, and the gradients (N, G) out of the same backward pass; no rows without them."""
    products: list[Array] = [np.zeros((len(t.ids), count)) for t in tokens]
    whole = np.zeros((len(tokens) if gradients else 0, teacher.gradient_size), dtype=np.float32)

    def batch(rows: list[int]) -> None:
        layout = teacher.lay_out([tokens[row] for row in rows])
        sums = torch.zeros(layout.size, count, dtype=torch.float64, device=teacher.device)
        parts: dict[tuple[str, str], Tensor] = {}
        add_up = summing(lambda module, matrix, part: parts.update({(module, matrix): part}), layout)

        def take(module: str, matrix: str, narrow: Tensor, wide: Tensor, scaling: float) -> None:
            few, many = (side.reshape(layout.size, -1).float() for side in (narrow, wide))
            along = directions(f"{module}.{matrix}", (few.shape[1], many.shape[1]))
            # (T, F R) of (T, columns): then R terms are left of each position and direction.
            turned = (many @ along.flatten(0, 1).T).unflatten(1, (count, -1))
            sums.add_((turned * few[:, None]).sum(2), alpha=scaling)
            if gradients:
                add_up(module, matrix, narrow, wide, scaling)

        teacher.run(layout, take)
        for row, found in zip(rows, _by_example(sums, layout), strict=True):
            # What lies behind an example's tokens is padding, which has no loss.
            products[row] = found[: len(tokens[row].ids)].cpu().numpy()
        if gradients:
            whole[rows] = teacher.flat(parts, len(rows))

    teacher.refuse_too_large(teacher.in_batches(tokens, batch))
    return products, whole


def _by_example(positions: Tensor, layout: Layout) -> Iterator[Tensor]:
    """The rows of each example out of those of all positions, padding included."""
    lengths = [run.length for run in layout.runs for _ in range(run.count)]
    return iter(positions.split(lengths))


def _parts(weights: Sequence[AdapterWeights], gradients: Rows) -> Directions:
    """Whole gradients (F, G) as directions in each matrix."""
    places: dict[str, tuple[int, bool]] = {}
    start = 0
    for w in weights:
        places[f"{w.target.name}.lora_B"] = start, True
        start += w.target.out_features * w.target.rank
        if w.b is not None:
            places[f"{w.target.name}.lora_A"] = start, False
            start += w.a.numel()

    def part(name: str, shape: tuple[int, int]) -> Tensor:
        begin, transposed = places[name]
        rank, columns = shape
        flat = torch.from_numpy(gradients[:, begin : begin + rank * columns]).to(weights[0].a.device)
        return flat.view(-1, columns, rank).transpose(1, 2) if transposed else flat.view(-1, rank, columns)

    return part


def _unit_rows(rows: Rows, what: str) -> tuple[Rows, Array]:
    """Rows (N, G) at length 1, and their lengths (N,)."""
    lengths = np.sqrt(np.einsum("ng,ng->n", rows, rows, dtype=np.float64))
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise ValueError(f"the gradient of {what} is zero or not finite, so that it has no direction")
    return np.asarray(rows / lengths[:, None], dtype=np.float32), lengths
