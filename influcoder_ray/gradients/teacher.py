"""The teacher: examples in, sketched loss gradients out."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from influcoder_ray.examples import Example
from influcoder_ray.examples.batching import token_batches
from influcoder_ray.examples.tokenizer import load_tokenizer
from influcoder_ray.examples.tokens import Tokens, loss_tokens, resolve_template
from influcoder_ray.gradients.adapter import AdapterWeights, adapter_weights, find_targets
from influcoder_ray.gradients.attention import why_not_packed
from influcoder_ray.gradients.budget import CPU_TOKENS, tokens_per_batch
from influcoder_ray.gradients.capture import MATRICES, Taker, summing
from influcoder_ray.gradients.layout import Layout, lay_out, most_runs_on
from influcoder_ray.gradients.loading import load_config, load_model, weights_dtype
from influcoder_ray.gradients.norms import fused_norms, norms_of
from influcoder_ray.gradients.optimizer import state_of
from influcoder_ray.gradients.passes import float32_products, run_passes
from influcoder_ray.gradients.pointwise import pointwise_of
from influcoder_ray.gradients.separation import refuse_mixing
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec

# ("<module>.lora_A" or "<module>.lora_B", gradients (N, R, columns)) -> what stands for them, as large.
Direction = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Sketches:
    """Sketched gradients of N examples, in the order in which these were given.

    Attributes:
        sketches: (N, D) float32.
        gradient_norms: (N,) float32, Euclidean norms of the unsketched gradients.
        module_norms: (N, M) float32, the share that each adapted module has in them.
        losses: (N,) float32, mean loss of each example's labelled tokens in nats.
        faults: (N,) why a row cannot be used, or empty.
        positions: tokens that went through the model, padding included.
    """

    sketches: np.ndarray
    gradient_norms: np.ndarray
    module_norms: np.ndarray
    losses: np.ndarray
    faults: tuple[str, ...]
    positions: int


class Teacher:
    """A frozen causal LM with a LoRA adapter that gives every example's own gradient.

    Args:
        weights: the adapter; with none, the model is run and nothing captured.
        pool_direction: what stands for the gradients of pool examples, where these are not it.

    Attributes:
        layout: how examples lie in the model's input.
        why_padded: what keeps them from being packed, where that was to be tried.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        weights: Sequence[AdapterWeights],
        spec: ModelSpec,
        *,
        pool_direction: Direction | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.weights = list(weights)
        self.spec = spec
        self.pool_direction = pool_direction
        self.template = resolve_template(tokenizer, spec.template)
        self.device = next(model.parameters()).device
        self.why_padded = why_not_packed(model, spec.max_tokens) if spec.layout == "auto" else None
        packed = spec.layout == "auto" and self.why_padded is None
        self.layout: Literal["packed", "padded"] = "packed" if packed else "padded"
        self._tokens_per_batch = spec.tokens_per_batch or CPU_TOKENS
        # A CPU has no operation of its own for them.
        self._norms = norms_of(model) if self.device.type == "cuda" else []
        self._pointwise = pointwise_of(model, self.device)

    @staticmethod
    def load(spec: ModelSpec, adapter: AdapterSpec, *, seed: int, device: torch.device) -> "Teacher":
        """Load model, tokenizer and adapter.

        Raises:
            UserError: the folder holds no causal LM or one that mixes examples, the adapter fits none of its
                modules, or the optimizer state is that of another adapter.
        """
        config = load_config(spec)
        targets = find_targets(config, adapter)
        budget = tokens_per_batch(config, spec, adapter, device)
        model = load_model(spec, device)
        refuse_mixing(model, targets, path=spec.path)
        weights = adapter_weights(targets, adapter, seed=seed, device=device, dtype=weights_dtype(spec))
        dtype = next(model.parameters()).dtype
        state = state_of(adapter, targets, device)
        tokenizer = load_tokenizer(spec.path, setting="model.path", trust_remote_code=spec.trust_remote_code)
        return Teacher(
            model,
            tokenizer,
            [w.to(dtype) for w in weights],
            spec.model_copy(update={"tokens_per_batch": budget}),
            pool_direction=None if state is None else state.direction,
        )

    @property
    def gradient_size(self) -> int:
        """Numbers in one example's gradient."""
        return sum(w.gradient_size for w in self.weights)

    @property
    def modules(self) -> list[str]:
        """Names of the adapted modules (M,), in the model's order."""
        return [w.target.name for w in self.weights]

    def tokens(self, examples: Sequence[Example]) -> list[Tokens]:
        """The tokens of examples inside this teacher's window."""
        return loss_tokens(examples, self.tokenizer, max_tokens=self.spec.max_tokens, template=self.template)

    def sketch(
        self,
        tokens: Sequence[Tokens],
        sketch: CountSketch,
        *,
        direction: Direction | None = None,
        report: Callable[[int], None] = lambda rows: None,
    ) -> Sketches:
        """Sketched gradients of examples (N,), each with at least one labelled token.

        Args:
            direction: what is sketched in the gradients' place; norms are the gradients' all the same.
            report: called with the number of examples done since the last call.
        """
        columns = {name: column for column, name in enumerate(self.modules)}
        sketches = torch.zeros(len(tokens), sketch.width, device=self.device)
        squares = torch.zeros(len(tokens), len(columns), device=self.device)
        losses = torch.zeros(len(tokens), device=self.device)
        positions = 0

        def batch(rows: list[int]) -> None:
            nonlocal positions
            part = torch.zeros(len(rows), sketch.width, device=self.device)
            part_norms = torch.zeros(len(rows), len(columns), len(MATRICES), device=self.device)

            def consume(module: str, matrix: str, gradients: Tensor) -> None:
                out = part_norms[:, columns[module], MATRICES.index(matrix)]
                torch.linalg.vector_norm(gradients, dim=(1, 2), out=out)
                name = f"{module}.{matrix}"
                sketch.add(part, direction(name, gradients) if direction else gradients, name)

            layout = self.lay_out([tokens[row] for row in rows])
            loss = self.run(layout, summing(consume, layout))
            # Written only when the batch is through: one that runs out of memory is done again.
            index = torch.tensor(rows, device=self.device)
            sketches[index], squares[index], losses[index] = part, part_norms.square().sum(2), loss
            positions += layout.size
            report(len(rows))

        too_large = self.in_batches(tokens, batch)
        found = Sketches(
            sketches=_fetched(sketches),
            gradient_norms=_fetched(squares.double().sum(1).sqrt().float()),
            module_norms=_fetched(squares.sqrt()),
            losses=_fetched(losses),
            faults=(),
            positions=positions,
        )
        return replace(found, faults=_faults(found, too_large))

    def gradients(self, tokens: Sequence[Tokens], *, direction: Direction | None = None) -> np.ndarray:
        """Exact gradients (N, G) float32 of a handful of examples: G numbers each, unsketched.

        Modules follow each other in the model's order, B (O, R) before A (R, I), as rows.

        Args:
            direction: what is returned in the gradients' place.

        Raises:
            torch.OutOfMemoryError: an example alone is too large for the device.
        """
        gradients = np.zeros((len(tokens), self.gradient_size), dtype=np.float32)

        def batch(rows: list[int]) -> None:
            parts: dict[tuple[str, str], Tensor] = {}

            def consume(module: str, matrix: str, part: Tensor) -> None:
                parts[module, matrix] = direction(f"{module}.{matrix}", part) if direction else part

            layout = self.lay_out([tokens[row] for row in rows])
            self.run(layout, summing(consume, layout))
            gradients[rows] = self.flat(parts, len(rows))

        self.refuse_too_large(self.in_batches(tokens, batch))
        return gradients

    def flat(self, parts: Mapping[tuple[str, str], Tensor], examples: int) -> np.ndarray:
        """Whole gradients (N, G) float32 of their parts as a `capture.Consumer` has them, see `gradients`.

        A module that takes no part in the loss, of an image's side say, has zeros.
        """
        whole = np.zeros((examples, self.gradient_size), dtype=np.float32)
        start = 0
        for w in self.weights:
            sizes = (w.target.out_features * w.target.rank, 0 if w.b is None else w.a.numel())
            for matrix, size in zip(MATRICES, sizes, strict=True):
                part = parts.get((w.target.name, matrix))
                if part is not None:
                    rows = part.transpose(1, 2) if matrix == "lora_B" else part
                    whole[:, start : start + size] = rows.flatten(1).cpu().numpy()
                start += size
        return whole

    def lay_out(self, tokens: Sequence[Tokens]) -> Layout:
        """The input of a batch of examples, as this model takes it."""
        return lay_out(
            tokens,
            packed=self.layout == "packed",
            device=self.device,
            most_runs=most_runs_on(self.device),
        )

    def run(self, layout: Layout, take: Taker) -> Tensor:
        """One forward and backward pass over a batch; returns each example's loss (N,), see `run_passes`."""
        precision = "high" if self.spec.dtype == "tf32" else "highest"
        with float32_products(precision), fused_norms(self._norms), self._fused():
            return run_passes(self.model, self.weights, layout, take)

    def _fused(self) -> AbstractContextManager[None]:
        return nullcontext() if self._pointwise is None else self._pointwise.fused()

    def refuse_too_large(self, rows: Sequence[int]) -> None:
        """Raise torch.OutOfMemoryError where there are rows that `in_batches` could not do."""
        if rows:
            raise torch.OutOfMemoryError(f"example {rows[0]} alone is too large for {self.device}")

    def in_batches(self, tokens: Sequence[Tokens], batch: Callable[[list[int]], None]) -> list[int]:
        """Run `batch` over rows by token budget; out of memory halves the budget and goes on.

        Args:
            batch: given the rows of a batch. It may be given them again in other batches where it ran out of
                memory, so what it finds should be written at its end.

        Returns:
            Rows that run out of memory alone.
        """
        lengths = [len(t.ids) for t in tokens]
        pending, too_large = list(range(len(lengths))), []
        while pending:
            finished: set[int] = set()
            groups = token_batches(
                [lengths[row] for row in pending], self._tokens_per_batch, packed=self.layout == "packed"
            )
            for group in groups:
                rows = [pending[position] for position in group]
                try:
                    batch(rows)
                except torch.OutOfMemoryError:
                    if len(rows) > 1:
                        self._tokens_per_batch //= 2
                        break
                    too_large += rows
                finished.update(rows)
            pending = [row for row in pending if row not in finished]
        return too_large


def _faults(sketches: Sketches, too_large: Sequence[int]) -> tuple[str, ...]:
    """Why each row (N,) cannot be used; empty where it can."""
    finite = np.isfinite(sketches.sketches).all(axis=1) & np.isfinite(sketches.gradient_norms)
    zero = (sketches.sketches == 0).all(axis=1)
    return tuple(
        "does not fit the device's memory"
        if row in too_large
        else "gradient is not finite"
        if not finite[row]
        else "gradient is zero"
        if zero[row]
        else ""
        for row in range(len(finite))
    )


def _fetched(tensor: Tensor) -> np.ndarray:
    """A tensor's numbers on the CPU; those of a GPU over pinned memory, in a fraction of the time."""
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    found: np.ndarray = here.copy_(tensor).numpy()
    return found
