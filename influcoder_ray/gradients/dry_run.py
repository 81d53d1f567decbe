"""One forward and backward pass with the bytes counted that are alive: on real tensors, or on bare ones.

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
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from influcoder_ray.gradients.adapter import AdapterWeights
from influcoder_ray.gradients.attention import CannotPack
from influcoder_ray.gradients.capture import summing
from influcoder_ray.gradients.layout import Layout
from influcoder_ray.gradients.passes import run_passes
from influcoder_ray.gradients.sketch import CountSketch

_CPU = torch.device("cpu")
# torch's attention is exchanged for the whole process while a bare model runs.
_ONE_AT_A_TIME = threading.Lock()


class Unpredictable(Exception):
    """Why a model's memory cannot be told from shapes alone."""


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
            consume = summing(lambda name, side, part: sketch.add(sketches, part, f"{name}.{side}"), layout)
            run_passes(model, weights, layout, consume)
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
