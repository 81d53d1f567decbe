"""What plain torch does in many small operations for each module, in one: for GPUs that Triton compiles for.

A module's gradients are small beside its activations, so that what its operations cost is their number:
a batch of a small model has thousands. Results are those of the plain operations: sketches bit for bit,
sums of products but for the order of float32 additions. Nothing is added up by atomics, so that every run
gives the same bits.

Imported only where `available_for` has said that it can be.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Of outer products: a tile's sides. Tensor cores take no fewer than 16 rows.
_FEWEST_RANKS, _MOST_RANKS, _TOKENS = 16, 64, 64
# A narrower tile makes more programs of a module with few columns: a card wants some for each of its cores.
_COLUMNS, _ENOUGH_PROGRAMS = (128, 64, 32), 512
_ENTRIES = 1024


def outer_sums(narrow: Tensor, wide: Tensor, starts: Tensor, scaling: float) -> Tensor:
    """Sums over each example's tokens of outer products, times `scaling`: (N, R, O) float32.

    Args:
        narrow: (T, R), of 16 bits a number.
        wide: (T, O), likewise.
        starts: int32 (N + 1,), where each example's tokens begin, and where the last one's end.
    """
    examples, rank, columns = len(starts) - 1, narrow.shape[1], wide.shape[1]
    sums = torch.empty(examples, rank, columns, device=wide.device)
    ranks = min(_MOST_RANKS, max(_FEWEST_RANKS, triton.next_power_of_2(rank)))
    block = next(
        (c for c in _COLUMNS if examples * triton.cdiv(columns, c) >= _ENOUGH_PROGRAMS), _COLUMNS[-1]
    )
    _outer_sums[(examples, triton.cdiv(columns, block), triton.cdiv(rank, ranks))](
        narrow,
        wide,
        sums,
        starts,
        scaling,
        rank,
        columns,
        *narrow.stride(),
        *wide.stride(),
        RANKS=ranks,
        TOKENS=_TOKENS,
        COLUMNS=block,
    )
    return sums


def add_to_sketches(sketches: Tensor, gradients: Tensor, octets: Tensor, blocks: Tensor) -> None:
    """Add a parameter's gradients to sketches (N, D) float32, in place.

    Args:
        gradients: (N, entries) float32.
        octets: uint8, the entries' signs, a bit each.
        blocks: int32 (blocks, 3), of each D entries: the affine map's multiplier, its inverse modulo D, and
            its shift.
    """
    examples, width = sketches.shape
    sketches_row, entries = sketches.stride(0), gradients.shape[1]
    gradients = gradients.contiguous()
    if len(blocks) == 1:
        _scatter[(examples, triton.cdiv(entries, _ENTRIES))](
            sketches, gradients, octets, blocks, entries, width, sketches_row, ENTRIES=_ENTRIES
        )
    else:
        _gather[(examples, triton.cdiv(width, _ENTRIES))](
            sketches, gradients, octets, blocks, len(blocks), entries, width, sketches_row, ENTRIES=_ENTRIES
        )


@triton.jit
def _outer_sums(  # type: ignore[no-untyped-def]
    narrow,
    wide,
    sums,
    starts,
    scaling,
    rank,
    columns,
    narrow_row,
    narrow_column,
    wide_row,
    wide_column,
    RANKS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    example = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.program_id(2) * RANKS + tl.arange(0, RANKS)
    begin = tl.load(starts + example)
    end = tl.load(starts + example + 1)
    total = tl.zeros((RANKS, COLUMNS), tl.float32)
    for first in range(begin, end, TOKENS):
        token = (first + tl.arange(0, TOKENS)).to(tl.int64)
        few = tl.load(
            narrow + token[None, :] * narrow_row + r[:, None] * narrow_column,
            mask=(token[None, :] < end) & (r[:, None] < rank),
            other=0.0,
        )
        many = tl.load(
            wide + token[:, None] * wide_row + column[None, :] * wide_column,
            mask=(token[:, None] < end) & (column[None, :] < columns),
            other=0.0,
        )
        total = tl.dot(few, many, total)
    row = example.to(tl.int64) * rank + r
    inside = (r[:, None] < rank) & (column[None, :] < columns)
    tl.store(sums + row[:, None] * columns + column[None, :], total * scaling, mask=inside)


@triton.jit
def _signed(gradients, octets, example, entry, inside, entries):  # type: ignore[no-untyped-def]
    """Entries of an example's gradient, each with its sign."""
    gradient = tl.load(gradients + example.to(tl.int64) * entries + entry, mask=inside, other=0.0)
    octet = tl.load(octets + (entry >> 3), mask=inside, other=0).to(tl.int32)
    return tl.where((octet >> (entry & 7)) & 1 == 1, -gradient, gradient)


@triton.jit
def _scatter(  # type: ignore[no-untyped-def]
    sketches, gradients, octets, blocks, entries, width, sketches_row, ENTRIES: tl.constexpr
):
    """One block: no two of its entries share a bucket, so that none waits for another."""
    example = tl.program_id(0)
    entry = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < entries
    # Products wrap in 32 bits; their low bits, which are kept, do not.
    bucket = (entry * tl.load(blocks) + tl.load(blocks + 2)) & (width - 1)
    place = sketches + example.to(tl.int64) * sketches_row + bucket
    before = tl.load(place, mask=inside, other=0.0)
    tl.store(place, before + _signed(gradients, octets, example, entry, inside, entries), mask=inside)


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    sketches, gradients, octets, blocks, count, entries, width, sketches_row, ENTRIES: tl.constexpr
):
    """Several blocks: each bucket fetches its entry of one after the other, in their order."""
    example = tl.program_id(0)
    bucket = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    place = sketches + example.to(tl.int64) * sketches_row + bucket
    total = tl.load(place, mask=bucket < width, other=0.0)
    for block in range(count):
        inverse = tl.load(blocks + 3 * block + 1)
        shift = tl.load(blocks + 3 * block + 2)
        entry = block * width + (((bucket - shift) * inverse) & (width - 1))
        inside = (entry < entries) & (bucket < width)
        signed = _signed(gradients, octets, example, entry, inside, entries)
        total = tl.where(inside, total + signed, total)
    tl.store(place, total, mask=bucket < width)
