"""The self-check: a handful of examples, looked at in every way in which their gradients can go wrong.

Each gradient alone against in a batch, in lower precision against float32, and as sketches of several
widths against itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import find_targets
from influcoder_ray.gradients.budget import CPU_TOKENS
from influcoder_ray.gradients.free_memory import free_memory_bytes
from influcoder_ray.gradients.loading import load_config, skeleton
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.gradients.widths import (
    WIDTHS,
    Array,
    WidthError,
    advised_width,
    pair_cosines,
    products,
    sketches_of_widths,
    width_errors,
)

Rows = npt.NDArray[np.float32]

# Largest relative difference of a gradient in a batch from the one alone. A matrix product of another shape
# rounds in another way, layer after layer, and numbers of 11 bits (TF32) or 8 round more than those of 24.
BATCH_TOLERANCE = {"float32": 1e-5, "tf32": 1e-2, "bfloat16": 1e-1}
# Least cosine of a gradient in lower precision with itself in float32. At .98 an influence, the cosine of
# two of them, loses at most 4% to rounding.
LEAST_COSINE = 0.98
_LOWER = ("tf32", "bfloat16")
# Fewer rows make too few pairs for a rank agreement.
FEWEST_ROWS = 3

_REMEDIES = {
    "not finite": "look for weights of the model that are not finite; if all are, leave the row out",
    "zero": "leave the row out, or give adapter.targets that take part in its loss",
}

# Standard errors by which sketched cosines may on average err more than predicted, and what rounding adds.
_ERROR_MARGIN = 5.0
_ROUNDING = 1e-6
_FLOAT32_BYTES = 4
# Held at once: the gradients alone, those of a batch, and twice what a batch is put together from.
_MATRICES = 4


@dataclass(frozen=True)
class Fault:
    """What is not sound, and what to do about it.

    `dtype` is the number type in which a batch or a precision is at fault, otherwise empty.
    """

    kind: Literal["gradient", "batch", "precision", "sketch"]
    what: str
    remedy: str
    dtype: str = ""


@dataclass(frozen=True)
class SelfCheck:
    """What was found about N examples' gradients of G numbers each.

    Attributes:
        example_ids: (N,) the examples looked at.
        left_out: example id and reason of each example without a token to predict.
        gradient_size: G.
        idle: adapted modules whose part of every sound gradient is zero.
        tokens: (N,) of each example.
        layout: how a batch lies in the model's input, and why not packed.
        batch_errors: by number type, (N,) |in a batch - alone| / |alone|; infinite where either is not
            finite or the one alone is zero.
        cosines: by number type ("tf32", "bfloat16"), (N,) cosine with the float32 gradient of the row; 0
            where that type's is zero or not finite.
        exact_cosines: (pairs,) of the float32 gradients, over all pairs of sound rows.
        widths: one entry a width, narrowest first; none where fewer than 3 rows are sound.
        advised_width: the smallest width that is enough, None if none is: see `advised_width`.
        faults: all that is not sound.

    A row whose float32 gradient is zero or not finite is not sound, and its entries are NaN.
    """

    example_ids: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    gradient_size: int
    idle: tuple[str, ...]
    tokens: tuple[int, ...]
    layout: str
    batch_errors: dict[str, Array]
    cosines: dict[str, Array]
    exact_cosines: Array
    widths: tuple[WidthError, ...]
    advised_width: int | None
    faults: tuple[Fault, ...]

    @property
    def spread(self) -> float:
        """Standard deviation of the exact cosines over the pairs."""
        return float(self.exact_cosines.std())


def self_check(
    model: ModelSpec,
    adapter: AdapterSpec,
    examples: Sequence[Example],
    *,
    seed: int,
    device: torch.device,
    widths: Sequence[int] = WIDTHS,
) -> SelfCheck:
    """Look at the gradients of a handful of examples.

    The reference is float32. bfloat16 is compared with it, and TF32 on a CUDA device or where `model`
    asks for it. What falls short in a number type is a fault where `model` asks for that type.

    Args:
        widths: powers of two, in any order.

    Raises:
        UserError: fewer than 3 examples have a token to predict, or their gradients do not fit into the
            memory that is free; and as `Teacher.load`.
    """
    _refuse_too_large(model, adapter, len(examples))
    # Room for two of the longest examples, so that none has to be alone in its batch.
    model = model.model_copy(
        update={"tokens_per_batch": max(model.tokens_per_batch or CPU_TOKENS, 2 * model.max_tokens)}
    )
    teacher = _load(model, "float32", adapter, seed, device)
    tokens, ids, left_out = _with_loss(teacher, examples)
    exact = np.empty((len(tokens), teacher.gradient_size), dtype=np.float32)
    for row, t in enumerate(tokens):
        exact[row] = teacher.gradients([t])[0]
    unsound = _unsound(exact)
    sound = [row for row in range(len(tokens)) if row not in unsound]
    idle = _idle(teacher, exact, sound)
    batch_errors = {"float32": _batch_errors(teacher, tokens, sound, exact.__getitem__)}
    sketches = sketches_of_widths(teacher, tokens, sorted(widths), seed)
    layout = f"{teacher.layout}: {teacher.why_padded}" if teacher.why_padded else teacher.layout
    faults = [
        Fault("gradient", f"{ids[row]}: its gradient is {why}", _REMEDIES[why])
        for row, why in unsound.items()
    ]
    cosines: dict[str, Array] = {}
    for dtype in _LOWER:
        if dtype == "tf32" and device.type != "cuda" and model.dtype != "tf32":
            continue
        # One model goes before the next one comes.
        del teacher
        teacher = _load(model, dtype, adapter, seed, device)
        cosines[dtype] = _cosines(teacher, tokens, sound, exact)
        if dtype == model.dtype:
            batch_errors[dtype] = _batch_errors(teacher, tokens, sound, partial(_alone, teacher, tokens))
            faults += _precision_faults(cosines[dtype], dtype, ids, sound)
    faults += _batch_faults(batch_errors, ids, sound)
    found, exact_cosines, advised = [], np.empty(0), None
    if len(sound) >= FEWEST_ROWS:
        exact_cosines = pair_cosines(exact[sound] if unsound else exact)
        found = width_errors([[part[sound] for part in draws] for draws in sketches], exact_cosines)
        advised = advised_width(found, float(exact_cosines.std()))
        faults += _width_faults(found, len(sound))
    return SelfCheck(
        example_ids=tuple(ids),
        left_out=left_out,
        gradient_size=exact.shape[1],
        idle=idle,
        tokens=tuple(len(t.ids) for t in tokens),
        layout=layout,
        batch_errors=batch_errors,
        cosines=cosines,
        exact_cosines=exact_cosines,
        widths=tuple(found),
        advised_width=advised,
        faults=tuple(faults),
    )


def _refuse_too_large(model: ModelSpec, adapter: AdapterSpec, count: int) -> None:
    config = load_config(model)
    # Of a fresh adapter only B has a gradient, of a trained one A as well.
    size = sum(
        t.rank * (t.out_features + (0 if adapter.path is None else t.in_features))
        for t in find_targets(config, adapter)
    )
    gradients_bytes = _MATRICES * count * size * _FLOAT32_BYTES
    weights_bytes = sum(p.numel() for p in skeleton(config).parameters()) * _FLOAT32_BYTES
    free_bytes = free_memory_bytes()
    if gradients_bytes + weights_bytes > free_bytes:
        raise UserError(
            f"self-check: {count} gradients of {size:,} numbers take {gradients_bytes / 2**30:,.1f} GiB and "
            f"weights in float32 {weights_bytes / 2**30:,.1f} GiB, of which {free_bytes / 2**30:,.1f} GiB "
            "are free; take fewer examples, a smaller adapter.rank, fewer targets or a larger machine"
        )


def _load(model: ModelSpec, dtype: str, adapter: AdapterSpec, seed: int, device: torch.device) -> Teacher:
    return Teacher.load(model.model_copy(update={"dtype": dtype}), adapter, seed=seed, device=device)


def _with_loss(
    teacher: Teacher, examples: Sequence[Example]
) -> tuple[list[Tokens], list[str], tuple[tuple[str, str], ...]]:
    """Tokens and ids of the examples that have a token to predict; id and reason of the others."""
    read = list(zip(examples, teacher.tokens(examples), strict=True))
    kept = [(e.example_id, t) for e, t in read if t.labelled > 0]
    if len(kept) < FEWEST_ROWS:
        raise UserError(
            f"self-check: {len(kept)} of {len(examples)} examples have a token to predict; give at least "
            f"{FEWEST_ROWS} that have"
        )
    left_out = tuple((e.example_id, t.fault or "no token to predict") for e, t in read if t.labelled == 0)
    return [t for _, t in kept], [example_id for example_id, _ in kept], left_out


def _unsound(gradients: Rows) -> dict[int, str]:
    """The rows of (N, G) that cannot be used, and why."""
    return {
        row: "zero" if finite else "not finite"
        for row, gradient in enumerate(gradients)
        if not (finite := bool(np.isfinite(gradient).all())) or not gradient.any()
    }


def _idle(teacher: Teacher, exact: Rows, sound: Sequence[int]) -> tuple[str, ...]:
    """Modules whose part of the gradients (N, G) is zero in all sound rows."""
    ends = np.cumsum([w.gradient_size for w in teacher.weights])
    parts = zip(teacher.weights, ends, strict=True)
    return tuple(
        w.target.name
        for w, end in parts
        if sound and not any(exact[row, end - w.gradient_size : end].any() for row in sound)
    )


def _batch_errors(
    teacher: Teacher, tokens: Sequence[Tokens], sound: Sequence[int], alone: Callable[[int], Rows]
) -> Array:
    """Relative difference (N,) of each gradient in a batch from `alone(row)` (G,)."""
    errors = np.full(len(tokens), np.nan)
    together = teacher.gradients(tokens)
    for row in sound:
        reference = alone(row)[None]
        difference = together[row][None] - reference
        lengths = [math.sqrt(products(part, part)[0, 0]) for part in (difference, reference)]
        errors[row] = lengths[0] / lengths[1] if np.isfinite(lengths).all() and lengths[1] else np.inf
    return errors


def _alone(teacher: Teacher, tokens: Sequence[Tokens], row: int) -> Rows:
    """The gradient (G,) of an example by itself."""
    return teacher.gradients([tokens[row]])[0]


def _cosines(teacher: Teacher, tokens: Sequence[Tokens], sound: Sequence[int], exact: Rows) -> Array:
    """Cosine (N,) of each example's gradient with its row of (N, G)."""
    cosines = np.full(len(tokens), np.nan)
    for row in sound:
        both = np.stack([_alone(teacher, tokens, row), exact[row]])
        cosines[row] = 0.0 if _unsound(both) else pair_cosines(both)[0]
    return cosines


def _batch_faults(batch_errors: dict[str, Array], ids: Sequence[str], sound: Sequence[int]) -> list[Fault]:
    return [
        Fault(
            "batch",
            f"{ids[row]}: its gradient in a batch differs from the one alone by {errors[row]:.1e} of its "
            f"length in {dtype}, more than {BATCH_TOLERANCE[dtype]:g}",
            "set model.layout to padded; if it stays, set model.tokens_per_batch to 8: each row goes alone",
            dtype,
        )
        for dtype, errors in batch_errors.items()
        for row in sound
        if errors[row] > BATCH_TOLERANCE[dtype]
    ]


def _precision_faults(cosines: Array, dtype: str, ids: Sequence[str], sound: Sequence[int]) -> list[Fault]:
    return [
        Fault(
            "precision",
            f"{ids[row]}: its gradient in {dtype} has a cosine of {cosines[row]:.4f} with the one in "
            f"float32, less than {LEAST_COSINE:g}",
            "set model.dtype to float32",
            dtype,
        )
        for row in sound
        if cosines[row] < LEAST_COSINE
    ]


def _width_faults(found: Sequence[WidthError], rows: int) -> list[Fault]:
    """Widths at which sketches err more than CountSketch does.

    The mean of M independent normal errors' absolute values has a relative standard error of
    sqrt(pi / 2 - 1) / sqrt(M). Pairs that share a row are not independent: M is taken as N - 1.
    """
    most = 1 + _ERROR_MARGIN * math.sqrt((math.pi / 2 - 1) / (rows - 1))
    return [
        Fault(
            "sketch",
            f"width {w.width:,}: sketched cosines err by {w.mean_error:.5f} on average, more than "
            f"{most:.1f} times the {w.predicted_error:.5f} to be expected",
            "set sketch.width to another one, and tell the authors: a sketch should not err so much",
        )
        for w in found
        if w.mean_error > most * w.predicted_error + _ROUNDING
    ]
