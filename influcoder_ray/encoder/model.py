"""The encoder: one unit vector a text, by its head or by pooling alone, in a layout that others load."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig

from influcoder_ray.ahead import in_order
from influcoder_ray.encoder.features import Reading, features, traits
from influcoder_ray.encoder.head import FOLDER, Head, Side, has_head
from influcoder_ray.encoder.linears import can_pack, packed_linears
from influcoder_ray.encoder.packing import Packed, PackedOutputs, first_position, packing, why_not_packed
from influcoder_ray.encoder.separation import refuse_mixing
from influcoder_ray.encoder.specs import EncoderSpec
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.batching import token_batches
from influcoder_ray.examples.tokenizer import load_tokenizer
from influcoder_ray.examples.tokens import separator_of, special_frame, text_window, text_windows
from influcoder_ray.lanes import Map, lanes

Pooling = Literal["mean", "cls", "last"]
# What sentence-transformers calls each, in its older files and in its newer ones.
_POOLINGS: dict[Pooling, tuple[str, str]] = {
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "cls": ("pooling_mode_cls_token", "cls"),
    "last": ("pooling_mode_lasttoken", "lasttoken"),
}
# Its modules that are read here, or make no difference to the direction of a vector.
_MODULES = ("Transformer", "Pooling", "Normalize", "Dropout", "InfluenceHead")
_HEAD_MODULE = "influcoder_ray.encoder.sentence_module.InfluenceHead"
# Rows whose tokens are made together, and which share batches: of the first part, and at most, which is
# enough that rows of like length meet.
_ROWS_AT_FIRST, _ROWS_AT_ONCE = 128, 1024
# What is read of an encoder's config.
_SIZES = ("hidden_size", "num_hidden_layers")
# Tokens of a pass where the settings leave them open: in training, and where a CPU or a GPU embeds.
_TOKENS, _TOKENS_ON_CPU, _TOKENS_ON_GPU = 2048, 512, 32_768


class Encoder:
    """A transformer encoder with a head, or with pooling alone; every vector has length one.

    Queries and pool examples have vectors of their own by a head; pooling makes no difference between
    them. Dropout is off in training too: a step's gradient then depends on the step alone, not on how its
    texts were spread over workers.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, pooling: Pooling, spec: EncoderSpec, head: Head | None = None
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.spec = spec
        self.head = head
        self.device = next(model.parameters()).device
        self._packs = False
        self._map: Map = map

    @staticmethod
    def load(spec: EncoderSpec, device: torch.device) -> "Encoder":
        """Load an encoder from its folder, with its head if it has one; safetensors only.

        Raises:
            UserError: the folder holds no encoder, the window is wider than its positions, or what it makes
                of a text depends on the batch.
        """
        check_encoder(spec)
        model: nn.Module = AutoModel.from_pretrained(spec.path, dtype=torch.float32, use_safetensors=True)
        head = Head.load(Path(spec.path) / FOLDER).to(device) if has_head(Path(spec.path)) else None
        tokenizer = load_tokenizer(spec.path, setting="encoder.path")
        encoder = Encoder(model.to(device), tokenizer, _pooling(spec), spec, head)
        refuse_mixing(encoder.model, padding=tokenizer.pad_token_id or 0, path=spec.path)
        return encoder

    @property
    def dimensions(self) -> int:
        """Numbers in a vector."""
        if self.head is not None:
            return self.head.dimensions
        return int(self.model.config.hidden_size)  # type: ignore[union-attr,arg-type]

    @property
    def precision(self) -> Literal["float32", "bfloat16"]:
        """In which numbers the encoder computes."""
        if self.spec.dtype != "auto":
            return self.spec.dtype
        return "bfloat16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"

    @property
    def tokens_per_batch(self) -> int:
        """Tokens of one pass when texts are embedded."""
        return self.spec.tokens_per_batch or (_TOKENS_ON_CPU if self.device.type == "cpu" else _TOKENS_ON_GPU)

    @property
    def reading(self) -> Reading:
        """What the head reads, or would read."""
        if self.head is not None:
            return self.head.reading
        opening, closing = special_frame(self.tokenizer)
        between = separator_of(self.tokenizer, self.spec.separator)
        separator = self.tokenizer(between, add_special_tokens=False)["input_ids"]
        return Reading.of(self.model, separator, len(opening), len(closing))

    def foremost(self, dimensions: int) -> "Encoder":
        """This encoder with vectors of its head's foremost directions alone, `dimensions` + 2 numbers.

        What else is read off a text stays what it is.

        Raises:
            ValueError: there is no head, or it does not have so many.
        """
        if self.head is None:
            raise ValueError("the encoder has no head, so that none of its numbers are the foremost")
        head = self.head.foremost(dimensions)
        return Encoder(self.model, self.tokenizer, self.pooling, self.spec, head)

    def new_head(self, dimensions: int, sketch_width: int) -> Head:
        """A head of zeros for this encoder, which does not use it yet."""
        return Head(self.reading, dimensions, sketch_width).to(self.device)

    def windows(self, examples: Sequence[Example]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each example inside this encoder's window, and whether anything was cut."""
        return text_window(
            examples, self.tokenizer, max_tokens=self.spec.max_tokens, separator=self.spec.separator
        )

    def vectors(
        self,
        windows: Sequence[Sequence[int]],
        side: Side = "pool",
        report: Callable[[int], None] = lambda rows: None,
    ) -> Tensor:
        """Unit vectors (N, d) float32 of token ids, in their order; carries gradients where enabled.

        Args:
            side: whether the texts are asked about or trained on; makes no difference without a head.
            report: called with the number of rows done since the last call.
        """

        def one_batch(ids: Tensor, mask: Tensor) -> Tensor:
            return self._vectors(self._read(ids, mask), side)

        return self._batched(windows, self.dimensions, one_batch, lambda rows: report(len(rows)))

    def features(self, windows: Sequence[Sequence[int]]) -> Tensor:
        """What a head reads of token ids: (N, F) float32; carries gradients where enabled."""
        reading = self.reading
        return self._batched(
            windows, reading.width, lambda ids, mask: self._features(ids, mask, reading), lambda rows: None
        )

    def embed(
        self,
        examples: Sequence[Example],
        side: Side = "pool",
        report: Callable[[int], None] = lambda rows: None,
    ) -> tuple[np.ndarray, list[bool]]:
        """Unit vectors (N, d) float32 of examples and whether each was cut; no gradients.

        Of a text longer than the window they are made as `spec.long_texts` says.
        """
        found, cut, _ = self._streamed(
            examples,
            (self._read_width, self._read),
            (self.dimensions, lambda it: self._vectors(it, side)),
            report,
        )
        return found, cut

    def embed_with_traits(
        self,
        examples: Sequence[Example],
        side: Side,
        read: Callable[[Tensor], Tensor],
        report: Callable[[int], None] = lambda rows: None,
    ) -> tuple[np.ndarray, np.ndarray, list[bool], list[int]]:
        """As `embed`; in second place what is read off each example's traits, (N, k) float32.

        In last place stand the tokens of each, as many as its windows hold.

        Traits are what familiarity is measured on (`features.traits`), with a head or without. They come
        out of the same forward pass.

        Args:
            read: makes (n, k) float32 of the traits (n, t) of some texts: those of all rows at once would
                take more memory than the vectors.
        """
        reading = self.reading

        def one_batch(ids: Tensor, mask: Tensor) -> Tensor:
            outputs = self._outputs(ids, mask, all_layers=True)
            found = features(outputs.hidden_states, ids, mask, reading)
            if self.head is not None:
                return found
            return torch.cat([self._pooled(outputs.last_hidden_state, mask), found], dim=1)

        def finished(both: Tensor) -> Tensor:
            found = both[:, -reading.width :]
            vectors = self._vectors(both[:, : self._read_width], side)
            return torch.cat([vectors, read(traits(found, reading))], dim=1)

        with torch.inference_mode():
            nothing = traits(torch.zeros(1, reading.width, device=self.device), reading)
            width = self.dimensions + read(nothing).shape[1]
        # What the head reads is all that there is to read.
        read_width = reading.width + (0 if self.head is not None else self._read_width)
        both, cut, tokens = self._streamed(examples, (read_width, one_batch), (width, finished), report)
        return both[:, : self.dimensions], both[:, self.dimensions :], cut, tokens

    def save(self, folder: Path) -> None:
        """Write the encoder so that transformers and sentence-transformers both load it.

        With a head, sentence-transformers has to be allowed to import it from this package.
        """
        self.tokenizer.save_pretrained(folder)
        if self.head is None:
            modules = ["Transformer", "Pooling", "Normalize"]
            types = [f"sentence_transformers.models.{name}" for name in modules]
        else:
            # So that sentence-transformers hands on every layer's states, which the head reads.
            self.model.config.output_hidden_states = True  # type: ignore[union-attr]
            modules = ["Transformer", "InfluenceHead"]
            types = [f"sentence_transformers.models.{modules[0]}", _HEAD_MODULE]
            self.head.save(folder / FOLDER)
        self.model.save_pretrained(folder)  # type: ignore[operator]
        _write_json(
            folder / "modules.json",
            [
                {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{name}", "type": kind}
                for i, (name, kind) in enumerate(zip(modules, types, strict=True))
            ],
        )
        _write_json(
            folder / "sentence_bert_config.json",
            {"max_seq_length": self.spec.max_tokens, "do_lower_case": False},
        )
        if self.head is not None:
            return
        _write_json(
            folder / "1_Pooling" / "config.json",
            {"word_embedding_dimension": self.dimensions}
            | {flag: self.pooling == name for name, (flag, _) in _POOLINGS.items()},
        )
        (folder / "2_Normalize").mkdir(exist_ok=True)

    @property
    def _read_width(self) -> int:
        """Numbers that `_read` gives of a text."""
        return self.dimensions if self.head is None else self.head.reading.width

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What vectors are made of, (N, ...) float32: what the head reads, or pooled states."""
        if self.head is None:
            return self._pooled(self._outputs(ids, mask, all_layers=False).last_hidden_state, mask)
        return self._features(ids, mask, self.head.reading)

    def _vectors(self, read: Tensor, side: Side) -> Tensor:
        """Unit vectors (N, d) of what `_read` gives."""
        if self.head is None:
            return functional.normalize(read, dim=1)
        vectors: Tensor = self.head(read, side)
        return vectors

    def _streamed(
        self,
        examples: Sequence[Example],
        read: tuple[int, Callable[[Tensor, Tensor], Tensor]],
        finish: tuple[int, Callable[[Tensor], Tensor]],
        report: Callable[[int], None],
    ) -> tuple[np.ndarray, list[bool], list[int]]:
        """What examples come to, (N, width of `finish`) float32; whether each was cut, and its tokens.

        The fast way, which carries no gradients. Tokens are made some rows at a time, by a thread that is
        ahead of the device, so that those of few rows are held. Which rows meet depends on the examples
        alone.

        Args:
            read: a width and what makes so many numbers of each window, of ids and mask (n, T).
            finish: a width and what makes so many numbers of each text, of what was read (n, ...): of several
                windows the mean by their tokens.
        """
        read_width, one_batch = read
        width, finished = finish
        found = np.empty((len(examples), width), dtype=np.float32)
        cut: list[bool] = []
        tokens: list[int] = []
        parts = (examples[part] for part in _in_parts(len(examples)))

        def fetch(first: int, part: Tensor) -> None:
            found[first : first + len(part)] = part.cpu().numpy()

        with torch.inference_mode(), self._fast():
            # Fetched only when the next part is under way: a GPU would wait for it to be prepared.
            held: tuple[int, Tensor] | None = None
            for texts, cut_here in in_order(self._all_windows, parts, threads=1, ahead=2):
                windows = list(chain.from_iterable(texts))
                begins = [number == 0 for text in texts for number in range(len(text))]

                def done(rows: list[int], begins: list[bool] = begins) -> None:
                    report(sum(begins[row] for row in rows))

                both = self._batched(windows, read_width, one_batch, done, self.tokens_per_batch)
                ready = len(cut), finished(_mean_of_windows(both, texts))
                if held is not None:
                    fetch(*held)
                held = ready
                cut += cut_here
                tokens += [sum(len(window) for window in text) for text in texts]
            if held is not None:
                fetch(*held)
        return found, cut, tokens

    def _all_windows(self, examples: Sequence[Example]) -> tuple[list[list[list[int]]], list[bool]]:
        """Token ids of each example, window by window, and whether anything was cut."""
        return text_windows(
            examples,
            self.tokenizer,
            max_tokens=self.spec.max_tokens,
            separator=self.spec.separator,
            most=self.spec.windows_of_a_text,
        )

    @contextmanager
    def _fast(self) -> Iterator[None]:
        """While it lasts, the model is set up to be quick rather than to be trained."""
        if self.device.type != "cpu":
            yield
            return
        with ExitStack() as stack:
            if self._may_pack:
                stack.enter_context(packing(self.model))
                if not _changes_with_length(self.model):
                    self._map = stack.enter_context(lanes())
            if self.precision == "float32" and can_pack():
                stack.enter_context(packed_linears(self.model))
            self._packs = self._may_pack
            try:
                yield
            finally:
                self._packs = False
                self._map = map

    @cached_property
    def _may_pack(self) -> bool:
        return why_not_packed(self.model) is None

    def _batched(
        self,
        windows: Sequence[Sequence[int]],
        width: int,
        one_batch: Callable[[Tensor, Tensor], Tensor],
        done: Callable[[list[int]], None],
        tokens_per_batch: int | None = None,
    ) -> Tensor:
        """What `one_batch` makes of ids and mask, (rows, width) each, for all windows in their order.

        Args:
            done: called with the rows of each batch.
            tokens_per_batch: those of training if None.
        """
        if not windows:
            return torch.zeros(0, width, device=self.device)
        budget = tokens_per_batch or self.spec.tokens_per_batch or _TOKENS
        batches = token_batches([len(w) for w in windows], budget)
        parts = []
        found = self._map(lambda rows: one_batch(*self._padded([windows[row] for row in rows])), batches)
        for rows, part in zip(batches, found, strict=True):
            parts.append(part)
            done(rows)
        order = torch.tensor([row for rows in batches for row in rows], device=self.device)
        return torch.cat(parts)[torch.argsort(order)]

    def _padded(self, windows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, (N, T) each, padded on the right."""
        lengths = torch.tensor([len(w) for w in windows])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.full(real.shape, self.tokenizer.pad_token_id or 0, dtype=torch.long)
        # NumPy takes a sixth of the time that torch takes for it, in which a GPU would wait.
        flat = np.fromiter(chain.from_iterable(windows), np.int64, int(lengths.sum()))
        ids[real] = torch.from_numpy(flat)
        return self._moved(ids), self._moved(real.long())

    def _moved(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU's on this encoder's device; a GPU fetches it without being waited for."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """One vector a text, (N, h) float32 and of any length, of its token states (N, T, h)."""
        if self.pooling == "cls":
            return states[:, 0].float()
        if self.pooling == "last":
            return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1].float()
        weights = mask.unsqueeze(-1).float()
        return (states.float() * weights).sum(1) / weights.sum(1)

    def _features(self, ids: Tensor, mask: Tensor, reading: Reading) -> Tensor:
        return features(self._outputs(ids, mask, all_layers=True).hidden_states, ids, mask, reading)

    def _outputs(self, ids: Tensor, mask: Tensor, *, all_layers: bool) -> Any:
        """The model's outputs for ids and mask (N, T), computed in the numbers that the settings ask for."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            if not self._packs:
                return self.model(input_ids=ids, attention_mask=mask, output_hidden_states=all_layers)
            packed = Packed.of(ids, mask, first_position=first_position(self.model))
            outputs = self.model(**packed.arguments, output_hidden_states=all_layers)
        return PackedOutputs(packed, outputs)


def _changes_with_length(model: nn.Module) -> bool:
    """Whether rotary embeddings are made anew, in the module itself, for a text longer than any before."""
    kinds = [str(getattr(module, "rope_type", "")) for module in model.modules()]
    return any(changing in kind for kind in kinds for changing in ("dynamic", "longrope"))


def _in_parts(rows: int) -> Iterator[slice]:
    """So many rows in parts: small ones first, for the device waits for the tokens of the first."""
    first, size = 0, _ROWS_AT_FIRST
    while first < rows:
        yield slice(first, first + size)
        first, size = first + size, min(2 * size, _ROWS_AT_ONCE)


def _mean_of_windows(read: Tensor, texts: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Of what was read of each window, (windows, ...), each text's mean by its windows' tokens, (N, ...)."""
    if len(read) == len(texts):
        return read
    counts = [torch.tensor([float(len(window)) for window in text]) for text in texts]
    # A text of one window has the weight 1 exactly: its numbers stay what they are.
    weights = torch.cat([count / count.sum() for count in counts]).to(read.device)
    windows = torch.tensor([len(text) for text in texts], device=read.device)
    # One window after the other, which a GPU's index_add_ would take in any order.
    return torch.segment_reduce(read * weights[:, None], "sum", lengths=windows)


def check_encoder(spec: EncoderSpec, *, weights: bool = True) -> None:
    """Refuse a folder that holds no encoder, or a window that it cannot take; reads no weights.

    Args:
        weights: whether the folder has to hold them.

    Raises:
        UserError: naming the folder and what is wrong with it.
    """
    if not os.path.isdir(spec.path):  # noqa: PTH112 - the path is the user's word, kept as it is
        raise UserError(f"encoder.path: {spec.path} is no folder; give an encoder's folder")
    try:
        config = AutoConfig.from_pretrained(spec.path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"encoder.path: {spec.path} is no model ({str(error).splitlines()[0]}); "
            "give a folder with config.json"
        ) from error
    if config.is_encoder_decoder:
        raise UserError(f"encoder.path: {spec.path} is an encoder-decoder; give an encoder alone")
    if weights and not any(Path(spec.path).glob("*.safetensors")):
        raise UserError(f"encoder.path: {spec.path} holds no weights; give a folder with model.safetensors")
    missing = [name for name in _SIZES if not isinstance(getattr(config, name, None), int)]
    if missing:
        raise UserError(
            f"encoder.path: the config of {spec.path} ({config.model_type}) has no {missing[0]}; give an "
            "encoder of texts alone"
        )
    if not load_tokenizer(spec.path, setting="encoder.path").is_fast:
        raise UserError(
            f"encoder.path: the tokenizer of {spec.path} cannot say where in a text its tokens stand; give "
            "an encoder with tokenizer.json"
        )
    _pooling(spec)
    positions = _positions(config)
    if positions is not None and spec.max_tokens > positions:
        raise UserError(
            f"encoder.max_tokens: {spec.max_tokens} is more than the {positions} positions of {spec.path}; "
            f"give at most {positions}"
        )


def _positions(config: PretrainedConfig) -> int | None:
    """Tokens that the model has places for, where it has a limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < 1:
        # So XLNet says that it has no limit.
        return None
    with torch.device("meta"):
        embeddings = getattr(AutoModel.from_config(config), "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    if positions is not None and padding is not None:
        # RoBERTa and its kin begin to count behind the padding's id.
        return positions - padding - 1
    return positions


def _pooling(spec: EncoderSpec) -> Pooling:
    if spec.pooling != "auto":
        return spec.pooling
    file = Path(spec.path) / "modules.json"
    if not file.exists():
        return "mean"
    modules = json.loads(file.read_bytes())
    for name in (module["type"].rpartition(".")[2] for module in modules):
        if name not in _MODULES:
            raise UserError(
                f"encoder.path: {spec.path} puts a {name} behind its token states, which is not computed "
                "here; set encoder.pooling to take the states without it"
            )
    for module in modules:
        if module["type"].endswith("Pooling"):
            config = json.loads((Path(spec.path) / module["path"] / "config.json").read_bytes())
            flags = [key for key, used in config.items() if key.startswith("pooling_mode_") and used]
            modes = config.get("pooling_mode") or flags
            for pooling, (flag, mode) in _POOLINGS.items():
                if modes in (mode, [mode], [flag]):
                    return pooling
            raise UserError(
                f"encoder.path: {spec.path} pools in a way that is neither mean, cls nor last; set "
                "encoder.pooling"
            )
    return "mean"


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))
