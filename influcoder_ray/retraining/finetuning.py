"""Fine-tuning a LoRA adapter on some examples, again and again from the same beginning.

The adapter is peft's; the loop is plain torch. A step's loss is the mean over its examples of each one's mean
loss over its labelled tokens: the loss whose gradient influence is made of. Its gradient is gathered over
batches by token budget, packed as the teacher packs them. The optimizer is AdamW (Loshchilov and Hutter,
arXiv 1711.05101) with torch's betas and no weight decay; at step t = 0, 1, ... of T the learning rate is
(1 - t / T) times the first one.

Which examples meet in a step follows from the seed and the contents: two sets of examples that differ in a
few have all others in the same order, so that their fine-tunes can be compared pair by pair.

On a CPU a fine-tune is the same to the bit wherever it runs on as many threads; on a GPU, up to the rounding
of kernels that add in any order.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from influcoder_ray.errors import RunFailed
from influcoder_ray.examples import Example
from influcoder_ray.examples.batching import token_batches
from influcoder_ray.examples.tokenizer import load_tokenizer
from influcoder_ray.examples.tokens import Tokens, loss_tokens, resolve_template
from influcoder_ray.gradients.adapter import (
    TargetModule,
    adapter_matrices,
    adapter_weights,
    attach,
    find_targets,
)
from influcoder_ray.gradients.attention import why_not_packed
from influcoder_ray.gradients.budget import tokens_per_batch
from influcoder_ray.gradients.hashing import key_of
from influcoder_ray.gradients.layout import Layout, lay_out, most_runs_on
from influcoder_ray.gradients.loading import load_config, load_model
from influcoder_ray.gradients.passes import example_losses, float32_products
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec

# Of the budget that is predicted for gradients alone: training keeps each module's input as well.
_SHARE_OF_BUDGET = 0.5

T = TypeVar("T")


class FineTuner:
    """A frozen causal LM with a LoRA adapter that `train` trains, each time from its beginning.

    Args:
        model: with frozen weights; the adapter is put into it.
        adapter: which modules carry it; a trained one is where each fine-tune begins, a fresh one is begun
            by the fine-tune's seed and changes nothing before the first step.
        spec: the model's.
        budget: tokens of one pass.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        targets: Sequence[TargetModule],
        adapter: AdapterSpec,
        spec: ModelSpec,
        *,
        budget: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self._targets = list(targets)
        self._adapter = adapter
        self._budget = budget
        self._template = resolve_template(tokenizer, spec.template)
        self._packed = spec.layout == "auto" and why_not_packed(model, spec.max_tokens) is None
        self._device = next(model.parameters()).device
        self._matrices = adapter_matrices(attach(model, adapter))
        for pair in self._matrices.values():
            for matrix in pair:
                # A trained adapter comes frozen.
                matrix.requires_grad_()
        # peft adapts the modules of the very model that it is given.
        self._model = model.eval()

    @staticmethod
    def load(spec: ModelSpec, adapter: AdapterSpec, *, device: torch.device) -> "FineTuner":
        """Load model and tokenizer.

        Raises:
            UserError: the folder holds no causal LM, or the adapter fits none of its modules.
        """
        config = load_config(spec)
        targets = find_targets(config, adapter)
        budget = tokens_per_batch(config, spec, adapter, device)
        if spec.tokens_per_batch is None and device.type != "cpu":
            budget = int(_SHARE_OF_BUDGET * budget)
        tokenizer = load_tokenizer(spec.path, setting="model.path", trust_remote_code=spec.trust_remote_code)
        return FineTuner(load_model(spec, device), tokenizer, targets, adapter, spec, budget=budget)

    def tokens(self, examples: Sequence[Example]) -> list[Tokens]:
        """The tokens of examples inside the model's window."""
        return loss_tokens(
            examples, self._tokenizer, max_tokens=self._spec.max_tokens, template=self._template
        )

    def begin(self, seed: int) -> None:
        """Put the adapter where fine-tunes with this seed begin."""
        weights = adapter_weights(
            self._targets, self._adapter, seed=seed, device=self._device, dtype=torch.float32
        )
        with torch.no_grad():
            for held in weights:
                a, b = self._matrices[held.target.name]
                a.copy_(held.a)
                if held.b is None:
                    b.zero_()
                else:
                    b.copy_(held.b)

    def train(
        self,
        tokens: Sequence[Tokens],
        steps: Sequence[Sequence[int]],
        *,
        learning_rate: float,
        seed: int,
        report: Callable[[int], None] = lambda rows: None,
    ) -> list[float]:
        """Fine-tune from the beginning on examples (N,), each with a labelled token.

        Args:
            steps: (T,) the rows of `tokens` that meet in each step, as `step_rows` gives them.
            learning_rate: of the first step.
            seed: of the first weights.
            report: called with the number of examples of each step.

        Returns:
            The loss of each step (T,), in nats, before it was taken.

        Raises:
            RunFailed: the loss is not finite any more, or an example alone does not fit the device's memory.
        """
        self.begin(seed)
        parameters = [matrix for pair in self._matrices.values() for matrix in pair]
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        losses = []
        for step, rows in enumerate(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - step / len(steps))
            batch = [tokens[row] for row in rows]
            loss = self._in_memory(partial(self._gather, batch, optimizer))
            if not math.isfinite(loss):
                raise RunFailed(f"the loss of step {step + 1} is {loss}: lower validate.learning_rate")
            optimizer.step()
            losses.append(loss)
            report(len(rows))
        return losses

    def losses(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """The mean loss (N,) float32 of each example's labelled tokens, in nats, with the adapter as it is.

        Raises:
            RunFailed: an example alone does not fit the device's memory.
        """
        return self._in_memory(partial(self._measure, tokens))

    def _gather(self, batch: Sequence[Tokens], optimizer: torch.optim.Optimizer) -> float:
        """Leave the gradient of a step's loss in the adapter's matrices; returns the loss."""
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for rows in self._batches(batch):
            with (
                float32_products(self._precision),
                example_losses(self._model, self._lay_out([batch[row] for row in rows])) as losses,
            ):
                (losses.sum() / len(batch)).backward()
                total += losses.detach().sum()
        return float(total) / len(batch)

    def _measure(self, tokens: Sequence[Tokens]) -> np.ndarray:
        found = torch.zeros(len(tokens), device=self._device)
        for rows in self._batches(tokens):
            with (
                torch.no_grad(),
                float32_products(self._precision),
                example_losses(self._model, self._lay_out([tokens[row] for row in rows])) as losses,
            ):
                found[torch.tensor(rows, device=self._device)] = losses
        return np.asarray(found.cpu().numpy())

    def _in_memory(self, work: Callable[[], T]) -> T:
        """Do work that starts anew when it is done again; out of memory halves the budget."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                if self._budget <= 1:
                    raise RunFailed(f"an example alone does not fit the memory of {self._device}") from error
                self._budget //= 2

    def _batches(self, tokens: Sequence[Tokens]) -> list[list[int]]:
        return token_batches([len(t.ids) for t in tokens], self._budget, packed=self._packed)

    def _lay_out(self, tokens: Sequence[Tokens]) -> Layout:
        runs = most_runs_on(self._device)
        return lay_out(tokens, packed=self._packed, device=self._device, most_runs=runs)

    @property
    def _precision(self) -> str:
        return "high" if self._spec.dtype == "tf32" else "highest"


def step_rows(contents: Sequence[str], steps: int, batch_size: int, seed: int) -> list[list[int]]:
    """The examples (batch_size,) of each step, as rows of `contents` (N,).

    Passes over all examples follow each other, each in an order of its own; a step may hold the end of one
    and the beginning of the next. An example's place among the others does not depend on which others there
    are.
    """

    def passes() -> Iterator[int]:
        for number in count():
            yield from sorted(
                range(len(contents)), key=lambda row: key_of(seed, "order", str(number), contents[row])
            )

    stream = passes()
    return [list(islice(stream, batch_size)) for _ in range(steps)]


def trained_adapter(adapter: AdapterSpec, rank: int) -> AdapterSpec:
    """The adapter that is fine-tuned: the run's own where that is trained, else a fresh one of this rank."""
    if adapter.path is not None:
        return AdapterSpec(path=adapter.path)
    return adapter.model_copy(update={"rank": rank})
