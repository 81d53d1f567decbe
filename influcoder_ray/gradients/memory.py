"""How much memory a batch will need, told by the model's config before any weight is loaded.

The teacher's own forward and backward pass runs on the meta device, where tensors have shapes and no
numbers, and the bytes that are alive at once are counted. So the figure follows from the
architecture itself, whichever it is, and takes no arithmetic.

Where the meta device would not do as a CPU or GPU does, the figure is this:
- `scaled_dot_product_attention` counts as a fused kernel, which keeps query, key, value, output and one
  float32 for each token and head (Dao et al., arXiv 2205.14135, section 3.1). It counts with its whole
  matrix of weights where torch has no fused kernel: heads of unequal width, one head of keys broadcast
  to many, and, on a GPU, fewer heads of keys than of queries in float32 or under a mask. Attention that
  the model writes out itself counts as written.
- Attention without a meta kernel (flash_attention_2, flex_attention) counts as torch's own, or as
  written out where the model has no such path: never less than it takes.
- A question about numbers (do positions follow each other, is nothing padded) is answered yes, as for
  a plain batch. A model that asks for more than yes or no is refused.
- Whether a model's packed examples see each other is a question about numbers too: a model whose
  attention is done example by example counts as packed.
What the allocator keeps in fragments, the libraries' workspaces and the device's own context are not
in the figure: leave room for them.
"""

import copy
import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.adapter import AdapterWeights, find_targets
from influcoder_ray.gradients.attention import CannotPack
from influcoder_ray.gradients.layout import HEAD_ROWS, Layout, Run
from influcoder_ray.gradients.loading import arithmetic_dtype, checkpoint_layers, skeleton, weights_dtype
from influcoder_ray.gradients.passes import run_passes
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec

_META = torch.device("meta")
_CPU = torch.device("cpu")
_FLOAT32_BYTES = 4
# Rows by which two predictions differ that fix the line between them.
_MANY = 64
# torch's attention is exchanged for the whole process while a bare model runs.
_ONE_AT_A_TIME = threading.Lock()
_RUNS_ON_META = (None, "eager", "sdpa")


class Unpredictable(Exception):
    """Why a model's memory cannot be told from shapes alone."""


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


@dataclass(frozen=True)
class Kept:
    """What one forward and backward pass keeps, beside the weights, the adapter and its input.

    Attributes:
        saved_below_bytes: storages that autograd saved below the output head.
        saved_above_bytes: those that it saved from the head on.
        captured_bytes: A x of every adapted module, and x where B is trained and x is not saved anyway.
        peak_bytes: the most that was alive at once, sketches among it.
    """

    saved_below_bytes: int
    saved_above_bytes: int
    captured_bytes: int
    peak_bytes: int


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
            except CannotPack:
                self._packed = False


def measure(
    model: nn.Module,
    weights: list[AdapterWeights],
    layout: Layout,
    width: int,
    *,
    runs_on: torch.device = _CPU,
) -> Kept:
    """Run a batch forward and backward, sketch its gradients, and count what is alive.

    Args:
        model: with weights, or bare on the meta device.
        width: D of the sketch.
        runs_on: the device for which the meta device stands.

    Raises:
        CannotPack: the layout is packed, and the model's attention would not keep examples apart.
        Unpredictable: a bare model's forward pass depends on numbers.
    """
    given = [
        *model.parameters(),
        *model.buffers(),
        *(m for w in weights for m in (w.a, w.b) if m is not None),
    ]
    given += [layout.ids, layout.labelled, layout.targets, layout.counts]
    given += [] if layout.positions is None else [layout.positions]
    saved, inputs = StorageCount(given), StorageCount(given)
    below_bytes = captured_bytes = 0

    def at_the_head(_module: nn.Module, _inputs: Any) -> None:
        nonlocal below_bytes, captured_bytes
        below_bytes = saved.alive_bytes
        captured_bytes = sum(size for key, size in inputs.alive.items() if key not in saved.alive)

    def pack(tensor: Tensor) -> Tensor:
        saved.meet(tensor)
        # Without its place in the graph, which would hold it for ever.
        return tensor.detach()

    modules = dict(model.named_modules())
    handles = [model.get_output_embeddings().register_forward_pre_hook(at_the_head)]  # type: ignore[operator]
    handles += [
        modules[w.target.name].register_forward_pre_hook(lambda _module, args: inputs.meet(args[0]))
        for w in weights
        if w.b is not None
    ]
    sketch = CountSketch(width, 0)
    try:
        with (
            LiveBytes(given) as live,
            _GroupedProducts(),
            _Answers(),
            _fused_attention(runs_on) as attended,
            saved_tensors_hooks(pack, lambda t: t),
        ):
            # The teacher fills the batch's own sketches first, and copies them to the results.
            _results, sketches = torch.zeros(2, layout.examples, width, device=layout.ids.device)
            run_passes(
                model, weights, layout, lambda name, side, part: sketch.add(sketches, part, f"{name}.{side}")
            )
    except RuntimeError as error:
        if not layout.ids.is_meta:
            raise
        raise Unpredictable(f"the forward pass depends on numbers ({str(error).splitlines()[0]})") from error
    finally:
        for handle in handles:
            handle.remove()
    if layout.positions is not None and not attended.issuperset((r.count, r.length) for r in layout.runs):
        raise CannotPack("the model does not use the attention that is chosen for it")
    projected_bytes = sum(layout.size * w.target.rank * w.a.dtype.itemsize for w in weights)
    return Kept(
        saved_below_bytes=below_bytes,
        saved_above_bytes=saved.peak_bytes - below_bytes,
        captured_bytes=captured_bytes + projected_bytes,
        peak_bytes=live.storages.peak_bytes,
    )


class StorageCount:
    """The bytes of storages that were met and are still alive: tensors that share one count once.

    Args:
        ignored: tensors that are held all the while, and not counted.
    """

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        self.alive: dict[int, int] = {}
        self.alive_bytes = self.peak_bytes = 0
        self._ignored = {t.untyped_storage()._cdata for t in ignored}

    def meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._ignored or key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        self.alive_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
        weakref.finalize(storage, self._leave, key).atexit = False

    def _leave(self, key: int) -> None:
        self.alive_bytes -= self.alive.pop(key)


class LiveBytes(TorchDispatchMode):
    """While it lasts, counts the storages that operations make, from their first use to their end."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()
        self.storages = StorageCount(ignored)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.storages.meet(leaf)
        return result


class _GroupedProducts(TorchDispatchMode):
    """While it lasts, bare experts multiply in any number type: torch's meta kernel knows bfloat16 alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # By name: not every release of torch has it.
        if str(func) == "aten._grouped_mm.default" and args[0].is_meta:
            rows, experts = args[:2]
            return rows.new_empty(rows.shape[0], experts.shape[-1])
        return func(*args, **(kwargs or {}))


class _Answers(TorchFunctionMode):
    """While it lasts, a question about a bare tensor's numbers is answered as for a plain batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func is Tensor.__bool__:
                return True
            if func is Tensor.__contains__:
                return False
        return func(*args, **(kwargs or {}))


@contextmanager
def _fused_attention(runs_on: torch.device) -> Iterator[set[tuple[int, int]]]:
    """While it lasts, torch's attention keeps on bare tensors what its fused kernels keep.

    A function mode would not do: it rests in the backward pass, where checkpointed layers run again.

    Yields:
        (sequences, tokens of each) of every attention so far.
    """
    plain = functional.scaled_dot_product_attention
    attended: set[tuple[int, int]] = set()

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        attended.add((query.shape[0], query.shape[2]))
        return _attention(plain, runs_on.type == "cuda", query, *args, **kwargs)

    with _ONE_AT_A_TIME:
        functional.scaled_dot_product_attention = attention
        try:
            yield attended
        finally:
            functional.scaled_dot_product_attention = plain


def _attention(
    plain: Callable[..., Tensor],
    on_gpu: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    one_width = query.shape[-1] == key.shape[-1] == value.shape[-1]
    one_count = query.shape[1] == key.shape[1] == value.shape[1]
    # On a GPU one fused kernel has grouped queries, and neither masks nor float32.
    grouped = enable_gqa and not (on_gpu and (attn_mask is not None or query.dtype == torch.float32))
    if not query.is_meta or not one_width or not (one_count or grouped):
        return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    # What this kernel keeps is what the GPU's kernels keep.
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return output


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
