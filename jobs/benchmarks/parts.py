"""The parts of the benchmark of gradients: ways over the same rows, each measured pass by pass."""

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
    """One way over some rows, and the passes that were measured.

    `ready` sets up what is not to be timed, and takes it away afterwards.
    """

    name: str
    tokens_per_batch: int | None
    tokens: list[Tokens]
    ready: Callable[[], AbstractContextManager[Work]]
    passes: list[Pass] = field(default_factory=list)

    def warm_up(self) -> None:
        """An uncounted pass over some of the rows."""
        with self.ready() as work:
            work(self.tokens[::_WARM_UP_EVERY])

    def measure(self, model: nn.Module, device: torch.device) -> Pass:
        """One more counted pass."""
        with self.ready() as work:
            self.passes.append(one_pass(lambda: work(self.tokens), model, device))
        return self.passes[-1]

    @property
    def seconds(self) -> float:
        """Of the fastest pass."""
        return min(p.seconds for p in self.passes)

    @property
    def tokens_per_second(self) -> float:
        return sum(len(t.ids) for t in self.tokens) / self.seconds

    @property
    def padding_share(self) -> float:
        """Share of positions that were padding."""
        return 1 - sum(len(t.ids) for t in self.tokens) / self.passes[0].positions

    @property
    def peak_memory_bytes(self) -> int | None:
        """Of the pass that took most."""
        peaks = [p.peak_memory_bytes for p in self.passes if p.peak_memory_bytes is not None]
        return max(peaks, default=None)


def teacher_part(
    name: str,
    teacher: Teacher,
    weights: Sequence[AdapterWeights],
    budget: int,
    tokens: list[Tokens],
    sketch: CountSketch,
) -> Part:
    """Sketching by a teacher of the same model with these adapter weights and token budget."""
    spec = teacher.spec.model_copy(update={"tokens_per_batch": budget})
    own = Teacher(teacher.model, teacher.tokenizer, weights, spec)

    def work(rows: Sequence[Tokens]) -> None:
        losses = own.sketch(rows, sketch).losses
        if not (losses > 0).all():
            raise RunFailed(f"{name}: a row has no loss, or does not fit into memory; lower --max-tokens")

    return Part(name, budget, tokens, lambda: nullcontext(work))
