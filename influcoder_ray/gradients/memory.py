"""How much memory a batch will need, told by the model's config before any weight is loaded.

The teacher's own forward and backward pass runs on the meta device, where tensors have shapes and no
numbers, and the bytes that are alive at once are counted. So the figure follows from the
architecture itself, whichever it is, and takes no arithmetic.

How the meta device is made to do as a CPU or GPU does stands in `dry_run`.
What the allocator keeps in fragments, the libraries' workspaces and the device's own context are not
in the figure: leave room for them.
"""

import copy
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.adapter import AdapterWeights, find_targets
from influcoder_ray.gradients.attention import WITHOUT_A_MASK, CannotPack
from influcoder_ray.gradients.dry_run import Kept, StorageCount, measure
from influcoder_ray.gradients.layout import HEAD_ROWS, Layout, Run
from influcoder_ray.gradients.loading import arithmetic_dtype, checkpoint_layers, skeleton, weights_dtype
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec

_META = torch.device("meta")
_CPU = torch.device("cpu")
_FLOAT32_BYTES = 4
# Rows by which two predictions differ that fix the line between them.
_MANY = 64
_RUNS_ON_META = (None, "eager", "sdpa")


@dataclass(frozen=True)
class MemoryPrediction:
    """The bytes that one batch needs at its highest point, by what they are for; they add up to the total.

    Attributes:
        weights_bytes: the model's parameters and buffers.
        activations_bytes: what autograd keeps of the forward pass below the output head.
        logits_bytes: float32 log-probabilities at labelled positions, their gradients and the logits'.
        capture_bytes: the adapter's matrices, A x of each token and module (of a trained adapter x too),
            and the gradients (N, R, O) or (N, R, I) of the module that has the largest.
        sketch_bytes: sketches (N, D) float32, once as they grow and once as results.
        passing_bytes: what else is alive at the highest point: gradients on their way through a layer.
    """

    weights_bytes: int
    activations_bytes: int
    logits_bytes: int
    capture_bytes: int
    sketch_bytes: int
    passing_bytes: int

    @property
    def total_bytes(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def predict_memory(
    config: PretrainedConfig,
    spec: ModelSpec,
    adapter: AdapterSpec,
    *,
    tokens: int,
    labelled_tokens: int | None = None,
    examples: int,
    width: int,
    device: torch.device = _CPU,
) -> MemoryPrediction:
    """What the teacher needs for one batch; reads no weights, and of a trained adapter its config alone.

    Args:
        tokens: of the batch, padding included; examples are taken to be of one length.
        labelled_tokens: tokens that carry loss; all but the first of each example if None.
        examples: N.
        width: D of the sketch.
        device: where the teacher will run.

    Raises:
        UserError: the config is of no causal LM, or the adapter fits none of its modules.
        Unpredictable: the model's forward pass depends on numbers.
    """
    predictor = Predictor(config, spec, adapter, width=width, device=device)
    return predictor.predict(examples, -(-tokens // examples), labelled_tokens)


def tokens_per_batch_within(
    available_bytes: int,
    config: PretrainedConfig,
    spec: ModelSpec,
    adapter: AdapterSpec,
    *,
    width: int,
    shortest: int = 32,
    device: torch.device = _CPU,
) -> int:
    """The largest token budget, a power of two or one and a half of one, whose batches fit.

    See `Predictor.tokens_per_batch_within`.
    """
    predictor = Predictor(config, spec, adapter, width=width, device=device)
    return predictor.tokens_per_batch_within(available_bytes, shortest=shortest)


class Predictor:
    """The bare model and adapter, on which batches of any shape are tried.

    Args:
        width: D of the sketch.
        device: where the teacher will run.

    Raises:
        UserError: the config is of no causal LM, or the adapter fits none of its modules.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        spec: ModelSpec,
        adapter: AdapterSpec,
        *,
        width: int,
        device: torch.device = _CPU,
    ) -> None:
        self._dtype = arithmetic_dtype(weights_dtype(spec), device)
        self._model = _bare_model(config, self._dtype)
        if spec.gradient_checkpointing:
            checkpoint_layers(self._model)
        self._weights = [
            AdapterWeights(
                t,
                torch.empty(t.rank, t.in_features, dtype=self._dtype, device=_META),
                torch.empty(t.out_features, t.rank, dtype=self._dtype, device=_META)
                if adapter.path
                else None,
            )
            for t in find_targets(self._model.config, adapter)
        ]
        self._width = width
        self._device = device
        self._max_tokens = spec.max_tokens
        takes_positions = "position_ids" in inspect.signature(self._model.forward).parameters
        self._packed = spec.layout == "auto" and takes_positions

    def predict(self, examples: int, length: int, labelled_tokens: int | None = None) -> MemoryPrediction:
        """What a batch of examples of one length needs.

        Args:
            length: tokens of each.
            labelled_tokens: tokens that carry loss; all but the first of each example if None.

        Raises:
            Unpredictable: the model's forward pass depends on numbers.
        """
        labelled = examples * (length - 1) if labelled_tokens is None else labelled_tokens
        kept = self._measure(examples, length, labelled)
        logits = labelled * self._model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
        logits_bytes = kept.saved_above_bytes + 2 * logits * _FLOAT32_BYTES
        adapter_bytes = sum(m.nbytes for w in self._weights for m in (w.a, w.b) if m is not None)
        largest = max(
            w.target.rank * (w.target.out_features if w.b is None else max(w.b.shape[0], w.a.shape[1]))
            for w in self._weights
        )
        captured_bytes = kept.captured_bytes + examples * largest * _FLOAT32_BYTES
        sketch_bytes = 2 * examples * self._width * _FLOAT32_BYTES
        told = kept.saved_below_bytes + logits_bytes + captured_bytes + sketch_bytes
        return MemoryPrediction(
            weights_bytes=_distinct_bytes([*self._model.parameters(), *self._model.buffers()]),
            activations_bytes=kept.saved_below_bytes,
            logits_bytes=logits_bytes,
            capture_bytes=adapter_bytes + captured_bytes,
            sketch_bytes=sketch_bytes,
            passing_bytes=max(0, kept.peak_bytes - told),
        )

    def tokens_per_batch_within(self, available_bytes: int, *, shortest: int = 32) -> int:
        """The largest token budget, a power of two or one and a half of one, whose batches fit.

        Every token counts as labelled. Examples as long as the window weigh most with attention that is
        written out, and short ones bring the most sketches into a batch: both have to fit.

        Args:
            available_bytes: free memory of the device before anything is loaded, less what is to be
                left free.
            shortest: tokens of the shortest examples that are expected to fill a batch.

        Raises:
            UserError: not even one example of `model.max_tokens` fits.
            Unpredictable: the model's forward pass depends on numbers.
        """
        most = []
        for length in dict.fromkeys((self._max_tokens, min(shortest, self._max_tokens))):
            one, many = (self.predict(n, length).total_bytes for n in (1, 1 + _MANY))
            if one > available_bytes and length == self._max_tokens:
                raise UserError(
                    f"model.max_tokens: one example of {length} tokens needs {one / 2**30:.1f} GiB and "
                    f"{available_bytes / 2**30:.1f} GiB are free; give a smaller window, bfloat16 or "
                    "gradient checkpointing"
                )
            # What an example brings is its own: memory is a straight line over the number of examples.
            most.append(length * (1 + (available_bytes - one) * _MANY // (many - one)))
        power = 1 << (min(most).bit_length() - 1)
        return power + power // 2 if power + power // 2 <= min(most) else power

    def _measure(self, examples: int, length: int, labelled_tokens: int) -> Kept:
        while True:
            layout = _bare_layout(examples, length, labelled_tokens, packed=self._packed)
            try:
                return measure(self._model, self._weights, layout, self._width, runs_on=self._device)
            except (CannotPack, *WITHOUT_A_MASK):
                if not self._packed:
                    raise
                self._packed = False


def _bare_model(config: PretrainedConfig, dtype: torch.dtype) -> nn.Module:
    """The model on the meta device as it will be loaded, with attention that runs there."""
    config = copy.deepcopy(config)
    config.dtype = dtype
    if config._attn_implementation not in _RUNS_ON_META:
        config._attn_implementation = "sdpa"
    try:
        model = skeleton(config)
    except UserError:
        # Not every model has a path through torch's own attention.
        config._attn_implementation = "eager"
        model = skeleton(config)
    return model.eval().requires_grad_(False)


def _bare_layout(examples: int, length: int, labelled_tokens: int, *, packed: bool) -> Layout:
    shape = (1, examples * length) if packed else (examples, length)
    return Layout(
        ids=torch.empty(shape, dtype=torch.long, device=_META),
        positions=torch.empty(shape, dtype=torch.long, device=_META) if packed else None,
        labelled=torch.empty(labelled_tokens + -labelled_tokens % HEAD_ROWS, dtype=torch.long, device=_META),
        targets=torch.empty(labelled_tokens, dtype=torch.long, device=_META),
        counts=torch.empty(examples, dtype=torch.long, device=_META),
        runs=(Run(examples, length),),
    )


def _distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors, those that share a storage (tied weights) counted once."""
    count = StorageCount(())
    for tensor in tensors:
        count.meet(tensor)
    return count.alive_bytes
