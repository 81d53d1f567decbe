"""Every example's gradient out of a batch is autograd's own, of that example alone, through PEFT."""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import CAUSAL_CONFIGS, causal_config, causal_lm
from transformers import AutoModelForCausalLM, CTRLConfig, Gemma3Config, MambaConfig

from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients import teacher as teacher_module
from influcoder_ray.gradients.adapter import AdapterWeights, TargetModule, adapter_weights, find_targets
from influcoder_ray.gradients.capture import capturing, summing
from influcoder_ray.gradients.layout import lay_out
from influcoder_ray.gradients.loading import checkpoint_layers
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher

CPU = torch.device("cpu")
TOLERANCE = 1e-5

EXAMPLES = [
    Example("raw", "", "The capital of France is Paris.", "f:0"),
    Example("pair", "Which bread is this?", "It is made of flour, water and salt.", "f:1"),
    Example("long", "Say it at length. " * 12, "No.", "f:2"),
    Example("long answer", "Go on?", "Seven times eight is fifty-six. " * 12, "f:3"),
    Example("foreign", "漢字 ?", "naïve 🙂", "f:4"),
]


class NoTokenizer:
    """Stands where examples come as tokens already."""

    chat_template = None


def teacher_of(
    model: torch.nn.Module,
    weights: Sequence[AdapterWeights],
    tokens_per_batch: int = 40,
    layout: str = "auto",
) -> Teacher:
    spec = ModelSpec(path="-", tokens_per_batch=tokens_per_batch, layout=layout)
    return Teacher(model, NoTokenizer(), weights, spec)


def some_tokens(lengths: Sequence[tuple[int, int]], vocabulary: int = 470) -> list[Tokens]:
    """Random tokens: (tokens, of which the first so many carry no loss) of each example."""
    generator = torch.Generator().manual_seed(1)
    return [
        Tokens(tuple(torch.randint(3, vocabulary, (n,), generator=generator).tolist()), prompt, False)
        for n, prompt in lengths
    ]


LENGTHS = [(5, 2), (12, 7), (2, 1), (9, 1), (20, 15), (3, 2), (20, 1), (13, 12)]


def alone_through_peft(
    peft_model: PeftModel, weights: Sequence[AdapterWeights], tokens: Sequence[Tokens]
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients (N, G) and losses (N,) of one example after the other, by Hugging Face and autograd."""
    peft_model.eval()
    modules = dict(peft_model.get_base_model().named_modules())
    gradients, losses = [], []
    for t in tokens:
        peft_model.zero_grad()
        ids = torch.tensor([t.ids])
        labels = ids.clone()
        labels[0, : t.labelled_from] = -100
        loss = peft_model(input_ids=ids, labels=labels).loss
        loss.backward()
        parts = []
        for w in weights:
            layer = modules[w.target.name]
            matrices = [layer.lora_B, *([] if w.b is None else [layer.lora_A])]
            # PyTorch has none where a module took no part.
            parts += [
                torch.zeros_like(m["default"].weight).flatten()
                if m["default"].weight.grad is None
                else m["default"].weight.grad.flatten()
                for m in matrices
            ]
        gradients.append(torch.cat(parts).numpy())
        losses.append(loss.item())
    return np.stack(gradients), np.array(losses)


def peft_with_fresh(model: torch.nn.Module, weights: Sequence[AdapterWeights], **lora: Any) -> PeftModel:
    """The model inside PEFT, each A set to ours; B is zero, as PEFT itself begins."""
    peft_model = get_peft_model(copy.deepcopy(model), LoraConfig(**lora))
    modules = dict(peft_model.get_base_model().named_modules())
    for w in weights:
        modules[w.target.name].lora_A["default"].weight.data.copy_(w.a)
    return peft_model


def trained_adapter(model: torch.nn.Module, folder: Path, **lora: Any) -> AdapterSpec:
    """An adapter with a B far from zero, saved by PEFT."""
    peft_model = get_peft_model(copy.deepcopy(model), LoraConfig(**lora))
    torch.manual_seed(3)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    peft_model.save_pretrained(folder)
    return AdapterSpec(path=str(folder))


def relative_errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(expected, axis=1)
    assert np.all(norms > 1e-6), "the reference has no gradient, so the comparison would prove nothing"
    return np.linalg.norm(found - expected, axis=1) / norms


@pytest.mark.parametrize("family", CAUSAL_CONFIGS)
def test_with_a_fresh_adapter_each_gradient_is_autograds_own(family: str) -> None:
    """Prevents padding, packing, neighbours, biases or capped logits from changing a gradient."""
    model = causal_lm(causal_config(family))
    spec = AdapterSpec(rank=4)
    weights = adapter_weights(find_targets(model.config, spec), spec, seed=1, device=CPU, dtype=torch.float32)
    tokens = some_tokens(LENGTHS)
    peft_model = peft_with_fresh(model, weights, r=4, lora_alpha=8, target_modules="all-linear")
    expected, _ = alone_through_peft(peft_model, weights, tokens)
    for layout in ("auto", "padded"):
        found = teacher_of(model, weights, layout=layout).gradients(tokens)
        assert found.dtype == np.float32
        assert relative_errors(found, expected).max() <= TOLERANCE


@pytest.mark.parametrize("family", CAUSAL_CONFIGS)
def test_with_a_trained_adapter_each_gradient_is_autograds_own(family: str, tmp_path: Path) -> None:
    """Prevents a user's adapter from being read, scaled or applied in another way than PEFT does."""
    model = causal_lm(causal_config(family))
    spec = trained_adapter(model, tmp_path, r=3, lora_alpha=12, target_modules="all-linear", lora_dropout=0.5)
    weights = adapter_weights(find_targets(model.config, spec), spec, seed=1, device=CPU, dtype=torch.float32)
    tokens = some_tokens(LENGTHS)
    peft_model = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path, is_trainable=True)
    expected, _ = alone_through_peft(peft_model, weights, tokens)
    for layout in ("auto", "padded"):
        found = teacher_of(model, weights, layout=layout).gradients(tokens)
        assert relative_errors(found, expected).max() <= TOLERANCE


@pytest.mark.parametrize("family", CAUSAL_CONFIGS)
def test_all_families_pack_but_those_that_cap_their_attention(family: str) -> None:
    """Prevents padding, and the time it costs, from coming back unnoticed with another transformers."""
    teacher = teacher_of(causal_lm(causal_config(family)), [])
    if family == "gemma2":
        assert (teacher.layout, teacher.why_padded) == ("padded", "the model caps its attention")
    else:
        assert (teacher.layout, teacher.why_padded) == ("packed", None)


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("kind", ["fresh", "trained"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_running_layers_again_in_the_backward_pass_changes_no_gradient(
    family: str, kind: str, layout: str, tmp_path: Path
) -> None:
    """Prevents a layer's second run from being taken for another use of it, or from losing its adapter."""
    model = causal_lm(causal_config(family))
    spec = AdapterSpec(rank=2)
    if kind == "trained":
        spec = trained_adapter(model, tmp_path, r=2, target_modules="all-linear")
    weights = adapter_weights(find_targets(model.config, spec), spec, seed=1, device=CPU, dtype=torch.float32)
    tokens = some_tokens(LENGTHS)
    expected = teacher_of(model, weights, layout=layout).gradients(tokens)
    runs = []
    model.get_submodule(weights[0].target.name).register_forward_hook(lambda *_: runs.append(0))
    assert checkpoint_layers(model) == model.config.num_hidden_layers
    found = teacher_of(model, weights, tokens_per_batch=1000, layout=layout)
    runs.clear()
    assert relative_errors(found.gradients(tokens), expected).max() <= TOLERANCE
    assert len(runs) == 2, "the layer did not run again, so nothing was proved"


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
        {
            "target_modules": "all-linear",
            "rank_pattern": {"v_proj": 2, r"model\.layers\.1\.mlp\.up_proj": 5},
            "alpha_pattern": {"v_proj": 20, r"layers\.0\..*o_proj": 3},
        },
        {"target_modules": r".*\.1\.self_attn\.(k|o)_proj"},
        {"target_modules": ["gate_proj"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "exclude_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    ],
    ids=["rank-stabilised", "patterns", "regex", "one-layer", "excluded"],
)
def test_every_way_to_shape_a_trained_adapter_keeps_gradients_exact(
    lora: dict[str, Any], tmp_path: Path
) -> None:
    """Prevents a scaling, rank or choice of modules that differs from the adapter's training."""
    model = causal_lm(causal_config("llama"))
    spec = trained_adapter(model, tmp_path, r=4, lora_alpha=6, **lora)
    weights = adapter_weights(find_targets(model.config, spec), spec, seed=1, device=CPU, dtype=torch.float32)
    tokens = some_tokens(LENGTHS[:4])
    peft_model = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path, is_trainable=True)
    adapted = [n for n, m in peft_model.get_base_model().named_modules() if hasattr(m, "lora_A")]
    assert [w.target.name for w in weights] == adapted
    expected, _ = alone_through_peft(peft_model, weights, tokens)
    assert relative_errors(teacher_of(model, weights).gradients(tokens), expected).max() <= TOLERANCE


@pytest.mark.parametrize("targets", [("q_proj", "up_proj"), r".*\.0\.mlp\..*_proj"], ids=["named", "regex"])
@pytest.mark.parametrize("alpha", [None, 5.0])
def test_named_and_regex_targets_and_alpha_keep_gradients_exact(
    targets: str | tuple[str, ...], alpha: float | None
) -> None:
    """Prevents settings that reach the choice of modules or the scaling in another shape than meant."""
    model = causal_lm(causal_config("llama"))
    spec = AdapterSpec(rank=4, alpha=alpha, targets=targets)
    weights = adapter_weights(find_targets(model.config, spec), spec, seed=1, device=CPU, dtype=torch.float32)
    peft_targets = targets if isinstance(targets, str) else list(targets)
    peft_model = peft_with_fresh(model, weights, r=4, lora_alpha=alpha or 8, target_modules=peft_targets)
    tokens = some_tokens(LENGTHS[:4])
    expected, _ = alone_through_peft(peft_model, weights, tokens)
    assert relative_errors(teacher_of(model, weights).gradients(tokens), expected).max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_raw_text_and_prompt_with_response_from_a_folder_are_exact(
    kind: str, causal_lm_folder: Path, chat_lm_folder: Path
) -> None:
    """Prevents labels one position off, or a prompt that takes part in the loss."""
    folder = causal_lm_folder if kind == "plain" else chat_lm_folder
    spec = AdapterSpec(rank=2)
    teacher = Teacher.load(
        ModelSpec(path=str(folder), max_tokens=48, tokens_per_batch=100), spec, seed=5, device=CPU
    )
    assert teacher.template == kind
    tokens = teacher.tokens(EXAMPLES)
    assert [t.truncated for t in tokens] == [False, False, True, True, False]
    model = AutoModelForCausalLM.from_pretrained(folder)
    peft_model = peft_with_fresh(model, teacher.weights, r=2, lora_alpha=4, target_modules="all-linear")
    expected, _ = alone_through_peft(peft_model, teacher.weights, tokens)
    found = teacher.gradients(tokens)
    assert found.shape == (len(EXAMPLES), teacher.gradient_size)
    assert relative_errors(found, expected).max() <= TOLERANCE


Reference = tuple[torch.nn.Module, list[AdapterWeights], list[Tokens], np.ndarray]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Reference]:
    """A family's model with an adapter, examples, and their gradients one at a time through PEFT."""

    @cache
    def made(family: str, kind: str) -> Reference:
        folder = tmp_path_factory.mktemp("trained")
        model = causal_lm(causal_config(family))
        tokens = some_tokens(LENGTHS)
        spec = AdapterSpec(rank=2)
        if kind == "trained":
            spec = trained_adapter(model, folder, r=2, target_modules="all-linear")
        weights = adapter_weights(
            find_targets(model.config, spec), spec, seed=1, device=CPU, dtype=torch.float32
        )
        if kind == "trained":
            peft_model = PeftModel.from_pretrained(copy.deepcopy(model), folder, is_trainable=True)
        else:
            peft_model = peft_with_fresh(model, weights, r=2, lora_alpha=4, target_modules="all-linear")
        return model, weights, tokens, alone_through_peft(peft_model, weights, tokens)[0]

    return made


@given(
    st.sampled_from(list(CAUSAL_CONFIGS)),
    st.sampled_from(["fresh", "trained"]),
    st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=12),
    st.integers(8, 300),
    st.sampled_from(["packed", "packed into two lengths", "padded"]),
)
@settings(max_examples=1000, deadline=None)
def test_neighbours_padding_packing_order_and_budget_do_not_touch_a_gradient(
    reference: Callable[[str, str], Reference],
    family: str,
    kind: str,
    rows: list[int],
    tokens_per_batch: int,
    layout: str,
) -> None:
    """Prevents influence that depends on which examples happened to share a batch."""
    model, weights, tokens, expected = reference(family, kind)
    teacher = teacher_of(model, weights, tokens_per_batch, "padded" if layout == "padded" else "auto")
    with patch.object(teacher_module, "most_runs_on", lambda device: 2 if "two" in layout else None):
        found = teacher.gradients([tokens[row] for row in rows])
    assert relative_errors(found, expected[rows]).max() <= TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_losses_equal_those_of_the_model_itself(family: str) -> None:
    """Prevents a loss over the wrong tokens, or past the model's own capping of logits."""
    model = causal_lm(causal_config(family))
    spec = AdapterSpec(rank=2, targets=("q_proj",))
    weights = adapter_weights(find_targets(model.config, spec), spec, seed=1, device=CPU, dtype=torch.float32)
    tokens = some_tokens(LENGTHS)
    peft_model = peft_with_fresh(model, weights, r=2, lora_alpha=4, target_modules=["q_proj"])
    _, expected = alone_through_peft(peft_model, weights, tokens)
    losses = []
    teacher = teacher_of(model, weights, 60)
    for start in range(0, len(tokens), 3):
        losses += teacher.sketch(tokens[start : start + 3], CountSketch(1024, 0)).losses.tolist()
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_bfloat16_points_where_float32_points(causal_lm_folder: Path) -> None:
    """Prevents low precision from ending in plausible noise."""
    gradients = {}
    for dtype in ("float32", "bfloat16"):
        spec = ModelSpec(path=str(causal_lm_folder), max_tokens=48, tokens_per_batch=100, dtype=dtype)
        teacher = Teacher.load(spec, AdapterSpec(rank=4), seed=5, device=CPU)
        gradients[dtype] = teacher.gradients(teacher.tokens(EXAMPLES))
    a, b = gradients["float32"], gradients["bfloat16"]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.min() > 0.99


# Models that do with some module what most do not, and which of them carry an adapter.
EDGES: dict[str, tuple[Any, Any]] = {
    # The modules that look at images wait in vain.
    "gemma3 with images": (
        Gemma3Config(
            text_config=causal_config("gemma3"),
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            },
            mm_tokens_per_image=1,
        ),
        "all-linear",
    ),
    # It multiplies by the weight of one linear module, which is never called.
    "mamba": (
        MambaConfig(vocab_size=512, hidden_size=32, state_size=8, num_hidden_layers=2, time_step_rank=4),
        ["in_proj", "x_proj", "dt_proj"],
    ),
    # It scales its embeddings in place.
    "ctrl": (
        CTRLConfig(vocab_size=512, n_embd=32, dff=48, n_layer=2, n_head=4, initializer_range=0.2),
        "all-linear",
    ),
}


@pytest.mark.parametrize("family", EDGES)
def test_modules_out_of_the_ordinary_have_the_gradients_that_peft_gives_them(family: str) -> None:
    """Prevents a traceback, or rows that are shorter than a gradient, where a module is not called."""
    config, targets = EDGES[family]
    model = causal_lm(config)
    spec = AdapterSpec(rank=2, targets=targets if isinstance(targets, str) else tuple(targets))
    weights = adapter_weights(find_targets(model.config, spec), spec, seed=1, device=CPU, dtype=torch.float32)
    tokens = some_tokens(LENGTHS)
    peft_model = peft_with_fresh(model, weights, r=2, lora_alpha=4, target_modules=targets)
    expected, _ = alone_through_peft(peft_model, weights, tokens)
    assert (expected == 0).all(0).any() == (family != "ctrl")
    found = teacher_of(model, weights).gradients(tokens)
    assert relative_errors(found, expected).max() <= TOLERANCE


class Folding(torch.nn.Module):
    """A model whose linear layer sees the tokens in some other way than once each, row by row."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.linear = torch.nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "twice":
            return self.linear(self.linear(x))
        if self.way == "some":
            return self.linear(x[:, 1:])
        return self.linear(x.flatten(0, 1))


@pytest.mark.parametrize("way", ["twice", "some", "folded"])
def test_a_module_that_does_not_see_each_token_once_is_refused(way: str) -> None:
    """Prevents tokens of one example from being booked on another, silently."""
    model = Folding(way)
    weights = [AdapterWeights(TargetModule("linear", 4, 4, 2, 1.0), torch.randn(2, 4), None)]
    x = torch.randn(3, 5, 4, requires_grad=True)
    layout = lay_out(some_tokens([(5, 1)] * 3), packed=False, device=CPU)
    shapes = []
    if way == "folded":
        take = summing(lambda *found: shapes.append(found[2].shape), layout)
        with capturing(model, weights, layout, take):
            model(x).sum().backward()
        assert shapes == [(3, 2, 4)]
        return
    with (
        pytest.raises(UserError, match=r"linear does not see every token"),
        capturing(model, weights, layout, lambda *found: None),
    ):
        model(x)
    assert not model.linear._forward_hooks
