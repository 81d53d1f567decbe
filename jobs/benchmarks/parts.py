"""The parts of the benchmark of gradients: ways over the same rows, each measured slice by slice."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.measure import Pass, one_pass
from influcoder_ray.errors import RunFailed
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import AdapterWeights
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.teacher import Teacher

_WARM_UP_EVERY = 8

Work = Callable[[Sequence[Tokens]], object]


class UnusedSketch(CountSketch):
    """Takes gradients and drops them: what is left of the time is not the sketch's."""

    def add(self, sketches: Tensor, gradients: Tensor, name: str) -> None:
        pass


@dataclass
class Part:
    """One way over some rows, slice by slice, and the passes that were measured.

    `ready` sets up what is not to be timed, and takes it away afterwards.
    """

    name: str
    tokens_per_batch: int | None
    slices: list[list[Tokens]]
    ready: Callable[[], AbstractContextManager[Work]]
    passes: list[list[Pass]] = field(init=False)

    def __post_init__(self) -> None:
        self.passes = [[] for _ in self.slices]

    def warm_up(self) -> None:
        """An uncounted pass over some of the rows."""
        with self.ready() as work:
            work(self.slices[0][::_WARM_UP_EVERY])

    def measure(self, number: int, model: nn.Module, device: torch.device) -> None:
        """One more counted pass over the slice of this number."""
        with self.ready() as work:
            self.passes[number].append(one_pass(lambda: work(self.slices[number]), model, device))

    @property
    def tokens(self) -> int:
        return sum(len(t.ids) for rows in self.slices for t in rows)

    @property
    def round_seconds(self) -> list[float]:
        """Of each round over all slices."""
        return [sum(p.seconds for p in passes) for passes in zip(*self.passes, strict=True)]

    @property
    def seconds(self) -> float:
        """Of the fastest pass over each slice, in all."""
        return sum(min(p.seconds for p in passes) for passes in self.passes)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def padding_share(self) -> float:
        """Share of positions that were padding."""
        return 1 - self.tokens / sum(passes[0].positions for passes in self.passes)

    @property
    def largest_batch(self) -> int:
        return max(passes[0].largest_batch for passes in self.passes)

    @property
    def peak_memory_bytes(self) -> int | None:
        """Of the pass that took most."""
        found = [p.peak_memory_bytes for passes in self.passes for p in passes]
        return max((peak for peak in found if peak is not None), default=None)


def teacher_part(
    name: str,
    teacher: Teacher,
    weights: Sequence[AdapterWeights],
    budget: int,
    slices: list[list[Tokens]],
    sketch: CountSketch,
) -> Part:
    """Sketching by a teacher of the same model with these adapter weights and token budget."""
    spec = teacher.spec.model_copy(update={"tokens_per_batch": budget})
    own = Teacher(teacher.model, teacher.tokenizer, weights, spec)

    def work(rows: Sequence[Tokens]) -> None:
        losses = own.sketch(rows, sketch).losses
        if not (losses > 0).all():
            raise RunFailed(f"{name}: a row has no loss, or does not fit into memory; lower --max-tokens")

    return Part(name, budget, slices, lambda: nullcontext(work))
