"""The teacher: examples in, sketched loss gradients out."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from influcoder_ray.examples import Example
from influcoder_ray.examples.batching import token_batches
from influcoder_ray.examples.tokenizer import load_tokenizer
from influcoder_ray.examples.tokens import Tokens, loss_tokens, resolve_template
from influcoder_ray.gradients.adapter import AdapterWeights, adapter_weights, find_targets
from influcoder_ray.gradients.capture import Consumer, capturing
from influcoder_ray.gradients.loading import load_config, load_model
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec


@dataclass(frozen=True)
class Sketches:
    """Sketched gradients of N examples, in the order in which these were given.

    `sketches` (N, D), `gradient_norms` (N,) of the unsketched gradients and `losses` (N,), the mean
    loss of each example's labelled tokens in nats: float32.
    """

    sketches: np.ndarray
    gradient_norms: np.ndarray
    losses: np.ndarray


class Teacher:
    """A frozen causal LM with a LoRA adapter that gives every example's own gradient.

    The loss is the sum over examples of each one's mean over its labelled tokens, so that an
    example's gradient does not depend on its neighbours.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        weights: Sequence[AdapterWeights],
        spec: ModelSpec,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.weights = list(weights)
        self.spec = spec
        self.template = resolve_template(tokenizer, spec.template)
        self.device = next(model.parameters()).device
        self._tokens_per_batch = spec.tokens_per_batch

    @staticmethod
    def load(spec: ModelSpec, adapter: AdapterSpec, *, seed: int, device: torch.device) -> "Teacher":
        """Load model, tokenizer and adapter.

        Raises:
            UserError: the folder holds no causal LM, or the adapter fits none of its modules.
        """
        targets = find_targets(load_config(spec), adapter)
        model = load_model(spec, device)
        weights = adapter_weights(
            targets, adapter, seed=seed, device=device, dtype=getattr(torch, spec.dtype)
        )
        tokenizer = load_tokenizer(spec.path, setting="model.path", trust_remote_code=spec.trust_remote_code)
        return Teacher(model, tokenizer, weights, spec)

    @property
    def gradient_size(self) -> int:
        """Numbers in one example's gradient."""
        return sum(w.gradient_size for w in self.weights)

    def tokens(self, examples: Sequence[Example]) -> list[Tokens]:
        """The tokens of examples inside this teacher's window."""
        return loss_tokens(examples, self.tokenizer, max_tokens=self.spec.max_tokens, template=self.template)

    def sketch(
        self,
        tokens: Sequence[Tokens],
        sketch: CountSketch,
        *,
        report: Callable[[int], None] = lambda rows: None,
    ) -> Sketches:
        """Sketched gradients of examples (N,), each with at least one labelled token.

        Args:
            report: called with the number of examples done since the last call.
        """
        sketches = torch.zeros(len(tokens), sketch.width, device=self.device)
        squares = torch.zeros(len(tokens), dtype=torch.float64, device=self.device)
        losses = torch.zeros(len(tokens), device=self.device)

        def batch(rows: list[int]) -> None:
            index = torch.tensor(rows, device=self.device)
            part = torch.zeros(len(rows), sketch.width, device=self.device)
            norms = torch.zeros(len(rows), dtype=torch.float64, device=self.device)

            def consume(name: str, gradients: Tensor) -> None:
                sketch.add(part, gradients, name)
                norms.add_(gradients.flatten(1).square().sum(1, dtype=torch.float64))

            # Written only when the batch is through: one that runs out of memory is done again.
            loss = self._backward([tokens[row] for row in rows], consume)
            sketches[index], squares[index], losses[index] = part, norms, loss
            report(len(rows))

        self._in_batches([len(t.ids) for t in tokens], batch)
        return Sketches(sketches.cpu().numpy(), squares.sqrt().float().cpu().numpy(), losses.cpu().numpy())

    def gradients(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """Exact gradients (N, G) float32 of a handful of examples: G numbers each, unsketched.

        Modules follow each other in the model's order, B before A.
        """
        gradients = np.zeros((len(tokens), self.gradient_size), dtype=np.float32)

        def batch(rows: list[int]) -> None:
            parts: dict[str, Tensor] = {}
            self._backward([tokens[row] for row in rows], parts.__setitem__)
            names = [f"{w.target.name}.{side}" for w in self.weights for side in ("lora_B", "lora_A")]
            gradients[rows] = torch.cat([parts[n].flatten(1) for n in names if n in parts], 1).cpu().numpy()

        self._in_batches([len(t.ids) for t in tokens], batch)
        return gradients

    def _in_batches(self, lengths: Sequence[int], batch: Callable[[list[int]], None]) -> None:
        """Run `batch` over rows by token budget; out of memory halves the budget and goes on."""
        pending = list(range(len(lengths)))
        while pending:
            finished: set[int] = set()
            for group in token_batches([lengths[row] for row in pending], self._tokens_per_batch):
                rows = [pending[position] for position in group]
                try:
                    batch(rows)
                except torch.OutOfMemoryError:
                    if len(rows) == 1:
                        raise
                    self._tokens_per_batch //= 2
                    break
                finished.update(rows)
            pending = [row for row in pending if row not in finished]

    def _backward(self, tokens: Sequence[Tokens], consume: Consumer) -> Tensor:
        """One forward and backward pass; returns each row's loss (N,).

        No attention mask is passed: padding lies to the right, where causal attention never looks.
        """
        longest = max(len(t.ids) for t in tokens)
        ids = torch.zeros(len(tokens), longest, dtype=torch.long)
        labelled = torch.zeros(len(tokens), longest, dtype=torch.bool)
        for row, t in enumerate(tokens):
            ids[row, : len(t.ids)] = torch.tensor(t.ids)
            # The logits that predict token i stand at position i - 1.
            labelled[row, t.labelled_from - 1 : len(t.ids) - 1] = True
        targets = ids.roll(-1, dims=1)[labelled].to(self.device)
        counts = labelled.sum(1).to(self.device)
        owner = torch.repeat_interleave(torch.arange(len(tokens), device=self.device), counts)
        with ExitStack() as stack:
            stack.enter_context(capturing(self.model, self.weights, (len(tokens), longest), consume))
            stack.enter_context(_activations_require_gradients(self.model))
            stack.enter_context(_logits_only_at(self.model, labelled.to(self.device)))
            stack.enter_context(torch.enable_grad())
            logits = self.model(input_ids=ids.to(self.device), use_cache=False).logits[0]
            token_losses = functional.cross_entropy(logits.float(), targets, reduction="none")
            losses = torch.zeros(len(tokens), device=self.device).index_add(0, owner, token_losses) / counts
            losses.sum().backward()
        return losses.detach()


def _activations_require_gradients(model: nn.Module) -> RemovableHandle:
    """While it lasts, activations carry gradients though every weight is frozen."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    handle: RemovableHandle = embedding.register_forward_hook(
        lambda _module, _inputs, output: output.requires_grad_()
    )
    return handle


def _logits_only_at(model: nn.Module, labelled: Tensor) -> RemovableHandle:
    """While it lasts, the output head sees labelled positions (N, T) only, as one row of them.

    The whole vocabulary's logits at every position would be the largest tensor of all. The model's
    own forward goes on from there, with whatever scaling or capping of logits it has.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    handle: RemovableHandle = head.register_forward_pre_hook(
        lambda _module, inputs: (inputs[0][labelled].unsqueeze(0),)
    )
    return handle
