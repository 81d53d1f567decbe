import json
from pathlib import Path

import pytest
import torch
import transformers

from influcoder_ray.demo.weights import fetch_causal_lm, fetch_encoder

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def causal_lm() -> Path:
    return fetch_causal_lm(print)


def test_the_chat_template_and_special_tokens_survive(causal_lm: Path) -> None:
    """Prevents prompts in a format that the language model was never trained on."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(causal_lm)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n")
    ids = tokenizer(rendered)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 3
    assert tokenizer.decode(ids) == rendered


def test_digits_and_the_spaces_before_them_are_tokens_of_their_own(causal_lm: Path) -> None:
    """Prevents the split of the GGUF's vocabulary without its digit rule: "a  2" would read otherwise."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(causal_lm)
    assert tokenizer.tokenize("a  2024") == ["a", "ĠĠ", "2", "0", "2", "4"]


def test_the_language_model_loads_as_a_plain_float32_folder(causal_lm: Path) -> None:
    """Prevents a cached folder that needs the GGUF reader, or that holds other than every weight."""
    assert "quantization_config" not in json.loads((causal_lm / "config.json").read_text())
    model, info = transformers.AutoModelForCausalLM.from_pretrained(causal_lm, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_sentence_transformers_and_transformers_load_the_encoder() -> None:
    """Prevents an encoder folder that lacks the pooling or the tokenizer."""
    from sentence_transformers import SentenceTransformer

    place = fetch_encoder(print)
    assert transformers.AutoModel.from_pretrained(place).config.hidden_size == 384
    encoder = SentenceTransformer(str(place), device="cpu")
    copying, deleting, cooking = encoder.encode(
        ["copy a folder", "delete a directory", "boil two eggs"], normalize_embeddings=True
    )
    assert float(copying @ deleting) > float(copying @ cooking)
