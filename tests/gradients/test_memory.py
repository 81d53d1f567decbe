"""Memory told from a config alone is the memory that real tensors take."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import CAUSAL_CONFIGS, causal_config, causal_lm
from transformers import BloomConfig, PretrainedConfig, Qwen3Config, Qwen3MoeConfig

from influcoder_ray.errors import UserError
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import AdapterWeights, find_targets
from influcoder_ray.gradients.attention import CannotPack
from influcoder_ray.gradients.dry_run import Kept, LiveBytes, StorageCount, Unpredictable, measure
from influcoder_ray.gradients.layout import lay_out
from influcoder_ray.gradients.loading import checkpoint_layers, skeleton
from influcoder_ray.gradients.memory import (
    MemoryPrediction,
    Predictor,
    predict_memory,
    tokens_per_batch_within,
)
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
WIDTH = 1024
# Layer norms with a mean: on a CPU in bfloat16 they keep means in bfloat16, elsewhere in float32.
WITH_MEANS = ("gpt_neox", "gpt2", "opt")
QWEN3_4B: dict[str, Any] = {
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}


def examples(rows: int, length: int, labelled: int) -> list[Tokens]:
    return [Tokens(tuple(range(3, 3 + length)), length - labelled, False)] * rows


def weights_on(
    device: torch.device, config: PretrainedConfig, dtype: torch.dtype, *, trained: bool
) -> list[AdapterWeights]:
    return [
        AdapterWeights(
            t,
            torch.full((t.rank, t.in_features), 0.01, dtype=dtype, device=device),
            torch.full((t.out_features, t.rank), 0.01, dtype=dtype, device=device) if trained else None,
        )
        for t in find_targets(config, AdapterSpec(rank=4))
    ]


def bare_and_real(
    config: PretrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
    trained: bool = False,
    packed: bool = False,
    checkpointing: bool = False,
) -> tuple[Kept, Kept]:
    """The same batch through a model on the meta device and through one with numbers."""
    found = []
    for device, model in ((META, skeleton(config)), (CPU, causal_lm(config))):
        model = model.to(dtype).eval().requires_grad_(False)
        assert not checkpointing or checkpoint_layers(model) == 2
        layout = lay_out(examples(3, 10, 5), packed=packed, device=device)
        found.append(measure(model, weights_on(device, config, dtype, trained=trained), layout, WIDTH))
    return found[0], found[1]


@pytest.mark.parametrize("family", CAUSAL_CONFIGS)
def test_bytes_on_meta_are_those_of_real_tensors(family: str) -> None:
    """Prevents a prediction that holds for the architecture in mind and for no other."""
    bare, real = bare_and_real(causal_config(family))
    assert bare == real
    assert min(bare.saved_below_bytes, bare.saved_above_bytes, bare.captured_bytes) > 0


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "gpt2"])
@pytest.mark.parametrize("way", ["trained", "packed", "checkpointing"])
def test_bytes_on_meta_are_real_ones_however_the_teacher_runs(family: str, way: str) -> None:
    """Prevents a figure that holds for the plain case alone: a fresh adapter, padding, all kept."""
    bare, real = bare_and_real(causal_config(family), **{way: True})  # type: ignore[arg-type]
    assert bare == real


@pytest.mark.parametrize("family", ["llama", "olmo2", "gemma2", "gpt2"])
def test_bfloat16_bytes_on_meta_are_those_of_real_tensors(family: str) -> None:
    """Prevents norms and softmax, which go on in float32, from being counted at half their size."""
    bare, real = bare_and_real(causal_config(family), dtype=torch.bfloat16)
    if family in WITH_MEANS:
        # A mean and a deviation for each of 30 tokens in each of 5 norms, two bytes more.
        assert bare.saved_below_bytes - real.saved_below_bytes == 5 * 2 * 30 * 2
    else:
        assert bare == real


def test_experts_of_a_mixture_are_counted() -> None:
    """Prevents a refusal, or a wrong figure, where tokens are sent to experts by their numbers."""
    config = Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    adapter = AdapterSpec(rank=4, targets=("q_proj", "o_proj"))
    found = predict(config, adapter=adapter)
    # Two of four experts see each token: gate, up and their product, of two layers, at the least.
    assert found.activations_bytes > 2 * 64 * 2 * 3 * 16 * 4
    weights = [
        AdapterWeights(t, torch.full((t.rank, t.in_features), 0.01), None)
        for t in find_targets(config, adapter)
    ]
    kept = measure(causal_lm(config), weights, lay_out(examples(4, 16, 15), packed=True, device=CPU), WIDTH)
    assert found.activations_bytes == kept.saved_below_bytes


def predict(
    config: PretrainedConfig,
    *,
    dtype: Any = "float32",
    adapter: AdapterSpec | None = None,
    checkpointing: bool = False,
    tokens: int = 64,
    examples: int = 4,
    **options: Any,
) -> MemoryPrediction:
    options = {"width": WIDTH} | options
    spec = ModelSpec(path="-", dtype=dtype, gradient_checkpointing=checkpointing)
    return predict_memory(
        config, spec, adapter or AdapterSpec(rank=4), tokens=tokens, examples=examples, **options
    )


@cache
def predictor(family: str) -> Predictor:
    spec = ModelSpec(path="-", max_tokens=32)
    return Predictor(causal_config(family), spec, AdapterSpec(rank=4), width=WIDTH)


class NoTokenizer:
    """Stands where examples come as tokens already."""

    chat_template = None


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "opt"])
def test_the_teacher_takes_what_was_predicted(family: str) -> None:
    """Prevents a budget that runs out of memory all the same, or one that leaves half of it idle."""
    config, adapter = causal_config(family), AdapterSpec(rank=4)
    model = causal_lm(config)
    weights = weights_on(CPU, config, torch.float32, trained=False)
    teacher = Teacher(model, NoTokenizer(), weights, ModelSpec(path="-", tokens_per_batch=8 * 64))
    held = [*model.parameters(), *model.buffers(), *(w.a for w in weights)]
    for labelled in (1, 30):
        with LiveBytes(held) as live:
            teacher.sketch(examples(8, 64, labelled), CountSketch(WIDTH, 0))
        found = predict(config, adapter=adapter, tokens=8 * 64, examples=8, labelled_tokens=8 * labelled)
        taken = live.storages.peak_bytes + found.weights_bytes + sum(w.a.nbytes for w in weights)
        assert found.total_bytes == pytest.approx(taken, rel=0.05)


def test_a_model_that_goes_its_own_way_with_attention_counts_as_padded() -> None:
    """Prevents a figure that grows with the square of the batch, for a batch that is never packed."""
    config = BloomConfig(vocab_size=512, hidden_size=32, n_layer=2, n_head=4)
    few, many = (predict(config, tokens=16 * n, examples=n).activations_bytes for n in (8, 64))
    assert many < 9 * few
    layout = lay_out(examples(3, 10, 5), packed=True, device=CPU)
    with pytest.raises(CannotPack, match="does not use the attention"):
        measure(causal_lm(config), weights_on(CPU, config, torch.float32, trained=False), layout, WIDTH)


def test_the_parts_add_up_to_the_total() -> None:
    """Prevents a part that is shown to the user and missing from the sum, or the other way round."""
    found = predict(causal_config("llama"), tokens=64, examples=4, labelled_tokens=20)
    assert found.total_bytes == (
        found.weights_bytes
        + found.activations_bytes
        + found.logits_bytes
        + found.capture_bytes
        + found.sketch_bytes
        + found.passing_bytes
    )
    # Log-probabilities, their gradients and the logits': float32 of 512 words; their labels' places.
    assert found.logits_bytes == pytest.approx(3 * 20 * 512 * 4, rel=0.01)
    assert found.sketch_bytes == 2 * 4 * WIDTH * 4
    # A of four attention and three feed-forward modules, A x of each, dL/dB of the largest, two layers.
    matrices = 2 * 4 * (6 * 32 + 48) * 4
    assert found.capture_bytes == matrices + 2 * 7 * 64 * 4 * 4 + 4 * 48 * 4 * 4


def test_a_trained_adapter_also_keeps_its_inputs(tmp_path: Any) -> None:
    """Prevents x, which dL/dA needs, from being forgotten, or counted once for each module that shares it."""
    config = causal_config("llama")
    lora = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"])
    get_peft_model(causal_lm(config), lora).save_pretrained(tmp_path)
    fresh = predict(config, adapter=AdapterSpec(rank=4, targets=("q_proj", "k_proj", "v_proj")))
    trained = predict(config, adapter=AdapterSpec(path=str(tmp_path)))
    matrices = 2 * 4 * (32 + 16 + 16) * 4
    assert trained.capture_bytes - fresh.capture_bytes == matrices + 2 * 64 * 32 * 4


def test_an_input_that_autograd_keeps_anyway_counts_once(tmp_path: Any) -> None:
    """Prevents a ReLU's output, which autograd keeps, from being counted as a captured input too."""
    config = causal_config("opt")
    lora = LoraConfig(r=4, target_modules=["fc2"])
    get_peft_model(causal_lm(config), lora).save_pretrained(tmp_path)
    fresh = predict(config, adapter=AdapterSpec(rank=4, targets=("fc2",)))
    trained = predict(config, adapter=AdapterSpec(path=str(tmp_path)))
    # Two matrices B, and dL/dA, which is larger than dL/dB, of one of the four examples' modules.
    assert trained.capture_bytes - fresh.capture_bytes == 2 * 4 * 32 * 4 + 4 * 4 * (48 - 32) * 4


def test_bfloat16_halves_weights_and_captures_but_no_sketch() -> None:
    """Prevents a number type that reaches the weights and not the activations, or the sketches too."""
    # Equal heads: a GPU has a fused kernel for both types.
    config = causal_config("llama", num_key_value_heads=4)
    single, half = (predict(config, dtype=d, device=CUDA) for d in ("float32", "bfloat16"))
    assert half.weights_bytes == pytest.approx(single.weights_bytes / 2, rel=0.01)
    assert half.sketch_bytes == single.sketch_bytes
    gradients = 4 * 48 * 4 * 4
    assert half.capture_bytes - gradients == (single.capture_bytes - gradients) / 2
    # Norms work in float32 whatever comes in.
    assert 0.5 * single.activations_bytes < half.activations_bytes < 0.9 * single.activations_bytes


@given(st.sampled_from(["llama", "gemma2", "gpt2"]), st.integers(1, 6), st.integers(2, 20))
@settings(max_examples=3, deadline=None)
def test_more_examples_longer_ones_and_more_labels_never_take_less(
    family: str, count: int, length: int
) -> None:
    """Prevents a search over budgets from ending at one that is not the largest."""
    base = predictor(family).predict(count, length).total_bytes
    assert predictor(family).predict(count + 1, length).total_bytes > base
    assert predictor(family).predict(count, length + 1).total_bytes > base
    assert predictor(family).predict(count, length, count).total_bytes <= base


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "opt"])
def test_memory_is_a_straight_line_over_examples(family: str) -> None:
    """Prevents a budget from being read off a line that the memory does not follow."""
    one, some, many = (predictor(family).predict(count, 16).total_bytes for count in (1, 33, 65))
    assert some - one == pytest.approx(many - some, rel=0.01)


@pytest.mark.parametrize("times", [1.2, 50.0])
def test_the_budget_fits_and_the_next_one_does_not(times: float) -> None:
    """Prevents a budget above the memory, and one that wastes it."""
    llama = predictor("llama")

    def totals(tokens: int) -> list[int]:
        return [llama.predict(tokens // length, length).total_bytes for length in (8, 32) if tokens >= length]

    available = int(times * totals(32)[1])
    budget = llama.tokens_per_batch_within(available, shortest=8)
    # Between a power of two and the next lies one step.
    following = budget * 3 // 2 if budget & (budget - 1) == 0 else budget * 4 // 3
    assert max(totals(budget)) <= available < max(totals(following + 31))


def test_short_examples_bound_the_budget_where_sketches_are_wide() -> None:
    """Prevents a budget that long examples fit, and short ones, with a sketch each, do not."""
    spec = ModelSpec(path="-", max_tokens=64)
    wide = Predictor(causal_config("llama"), spec, AdapterSpec(rank=4), width=65_536)
    available = 20 * wide.predict(1, 64).total_bytes
    long, short = (wide.tokens_per_batch_within(available, shortest=n) for n in (64, 8))
    assert short < long / 2
    assert wide.predict(short // 8, 8).total_bytes <= available


def test_a_window_that_does_not_fit_is_refused_by_name() -> None:
    """Prevents a run that begins, and dies of its longest example hours later."""
    config, spec = causal_config("llama"), ModelSpec(path="-", max_tokens=64)
    with pytest.raises(UserError, match=r"model\.max_tokens: one example of 64 tokens needs 0\.0 GiB"):
        tokens_per_batch_within(100_000, config, spec, AdapterSpec(rank=4), width=WIDTH)


def test_a_model_of_four_billion_is_told_from_its_config() -> None:
    """Prevents a prediction that needs the machine that it is to be made for."""
    found = predict(
        Qwen3Config(**QWEN3_4B),
        dtype="bfloat16",
        adapter=AdapterSpec(),
        tokens=4096,
        examples=8,
        width=65_536,
        device=CUDA,
    )
    assert found.weights_bytes == pytest.approx(4.02e9 * 2, rel=0.01)
    # The paper behind fused attention: no matrix of 512 x 512 weights for each of 32 heads is kept.
    per_token_and_layer = found.activations_bytes / 4096 / 36
    assert 2560 * 2 * 10 < per_token_and_layer < 32 * 512 * 2 + 2560 * 2 * 10 * 4


def test_without_a_fused_kernel_the_attention_matrix_counts() -> None:
    """Prevents running out of memory where a GPU computes grouped queries in float32 step by step."""
    grouped, equal = causal_config("llama"), causal_config("llama", num_key_value_heads=4)
    for config, extra in ((grouped, True), (equal, False)):
        fused, unfused = (
            predict(config, tokens=4 * 64, examples=4, device=d).activations_bytes for d in (CPU, CUDA)
        )
        # 64 weights, and no sum, of each of 64 tokens, 4 heads, 4 examples and 2 layers.
        assert unfused - fused == (2 * 4 * 4 * 64 * (64 - 1) * 4 if extra else 0)


def test_in_bfloat16_a_gpu_has_a_fused_kernel_for_grouped_queries() -> None:
    """Prevents the largest models from being told that they need memory for attention that is never kept."""
    config = causal_config("llama")
    long, short = (
        predict(config, dtype="bfloat16", device=CUDA, tokens=256, examples=n).activations_bytes
        for n in (2, 8)
    )
    assert long == pytest.approx(short, rel=0.01)


def test_gradient_checkpointing_keeps_the_layers_inputs_alone() -> None:
    """Prevents a setting that saves memory from being left out of what it saves."""
    config = causal_config("llama", num_hidden_layers=6)
    all_kept, inputs_kept = (predict(config, checkpointing=c) for c in (False, True))
    assert inputs_kept.activations_bytes < all_kept.activations_bytes / 3
    assert inputs_kept.total_bytes < all_kept.total_bytes


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_that_has_no_meta_kernel_counts_as_torchs_own(implementation: str) -> None:
    """Prevents a model from having no prediction at all because of a package that is not installed."""
    config = causal_config("llama")
    plain = predict(config)
    config._attn_implementation = implementation
    assert predict(config) == plain
    assert config._attn_implementation == implementation


def test_a_model_that_asks_for_numbers_is_refused_by_name() -> None:
    """Prevents a figure that was made up for a pass that never ran."""
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=8,
        moe_intermediate_size=8,
        num_experts=2,
        num_experts_per_tok=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        experts_implementation="eager",
    )
    with pytest.raises(Unpredictable, match="depends on numbers"):
        predict(config, adapter=AdapterSpec(targets=("q_proj",)))


def test_storages_count_once_and_only_while_they_live() -> None:
    """Prevents views from being counted as tensors of their own, and the dead as alive."""
    held = torch.zeros(1000)
    count = StorageCount([held])
    a, b = torch.zeros(10), torch.zeros(5)
    for tensor in (held, held[:3], a, a.view(2, 5), a[:1], b):
        count.meet(tensor)
    assert count.alive_bytes == count.peak_bytes == 60
    del a, tensor
    count.meet(b)
    assert count.alive_bytes == 60 - 40
    assert count.peak_bytes == 60


def test_live_bytes_see_what_comes_and_goes_inside_an_expression() -> None:
    """Prevents a peak between two lines from being missed."""
    x = torch.zeros(100, dtype=torch.float64)
    with LiveBytes([x]) as live:
        y = ((x + 1) * 2).sum()
    assert live.storages.peak_bytes == 2 * 800
    assert live.storages.alive_bytes == y.nbytes
