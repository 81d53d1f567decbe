"""Tiny models in the layouts that people have: built in a second, with tokenizers that encode any text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

SENTENCES = (
    "Which of the examples taught the model to answer like that?",
    "A gradient is a vector of slopes: it says which way the loss falls.",
    "The capital of France is Paris, and the capital of Japan is Tokyo.",
    "def add(a, b):\n    return a + b\n",
    "Seven times eight is fifty-six; nine times nine is eighty-one.",
    "Question: what is the boiling point of water? Answer: 100 degrees Celsius.",
    "The user asks for help and the assistant gives a short and exact answer.",
    "Bread is made of flour, water, salt and yeast, and it is baked in an oven.",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_WORDS = 512


def build_causal_lm(
    folder: Path, *, family: str = "llama", chat_template: str | None = None, seed: int = 0, **overrides: Any
) -> Path:
    """A folder with a random causal LM of some 50,000 parameters and its tokenizer; returns the folder.

    Args:
        family: a key of `CAUSAL_CONFIGS`.
        overrides: fields of the model's config.
    """
    tokenizer = _tokenizer(["<pad>", "<s>", "</s>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = chat_template
    config = causal_config(family, vocab_size=len(fast), **overrides)
    causal_lm(config, seed=seed).save_pretrained(folder)  # type: ignore[operator]
    fast.save_pretrained(folder)
    return folder


def build_encoder(
    folder: Path, *, pooling: str | None = "mean", seed: int = 0, max_tokens: int = 128, **overrides: Any
) -> Path:
    """A folder with a random BERT of some 50,000 parameters and its tokenizer; returns the folder.

    Args:
        pooling: written down as sentence-transformers does ("mean", "cls", "max"); with None the
            folder is plain transformers.
        overrides: fields of the model's config.
    """
    tokenizer = _tokenizer(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=max_tokens,
    )
    fields: dict[str, Any] = {
        "vocab_size": len(fast),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": max_tokens,
        "pad_token_id": fast.pad_token_id,
    }
    torch.manual_seed(seed)
    model = BertModel(BertConfig(**(fields | overrides)))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    if pooling is not None:
        _write_sentence_transformers_files(folder, pooling, model.config.hidden_size, max_tokens)
    return folder


def causal_lm(config: PretrainedConfig, *, seed: int = 0) -> torch.nn.Module:
    """A random causal LM in evaluation mode, its weights frozen.

    Vectors (norms' weights, biases) are moved off their initial ones and zeros, so that a test sees
    whether they are used.
    """
    torch.manual_seed(seed)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def causal_config(family: str, **overrides: Any) -> PretrainedConfig:
    """The config of a tiny model of a family, see `CAUSAL_CONFIGS`."""
    config_class, fields = CAUSAL_CONFIGS[family]
    return config_class(**(fields | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | overrides))


_SIZES: dict[str, Any] = {
    "vocab_size": _WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    # Wide enough that attention is far from uniform and the loss far from flat.
    "initializer_range": 0.2,
}
_GROUPED: dict[str, Any] = _SIZES | {"num_key_value_heads": 2}

CAUSAL_CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _GROUPED),
    # Biases on queries, keys and values.
    "qwen2": (Qwen2Config, _GROUPED),
    # A window of attention that most examples of the tests are longer than.
    "mistral": (MistralConfig, _GROUPED | {"sliding_window": 4}),
    # One linear layer for queries, keys and values.
    "phi3": (Phi3Config, _GROUPED),
    "qwen3": (Qwen3Config, _GROUPED | {"head_dim": 8}),
    "olmo": (OlmoConfig, _GROUPED | {"clip_qkv": 0.5}),
    "olmo2": (Olmo2Config, _GROUPED),
    "gemma": (GemmaConfig, _GROUPED | {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma2": (
        Gemma2Config,
        _GROUPED
        | {
            "head_dim": 8,
            "sliding_window": 4,
            # Low caps, so that they bend these small models' numbers.
            "final_logit_softcapping": 2.0,
            "attn_logit_softcapping": 1.0,
            "tie_word_embeddings": True,
            "attn_implementation": "eager",
        },
    ),
    "gemma3": (
        Gemma3TextConfig,
        _GROUPED
        | {
            "head_dim": 8,
            "sliding_window": 4,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt_neox": (GPTNeoXConfig, _SIZES),
    # Folds rows and tokens into one axis before its feed-forward layers.
    "opt": (
        OPTConfig,
        {
            "vocab_size": _WORDS,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "init_std": 0.2,
            "word_embed_proj_dim": 32,
        },
    ),
    "gpt2": (
        GPT2Config,
        {"vocab_size": _WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    ),
}


def _tokenizer(special_tokens: Sequence[str]) -> Tokenizer:
    """Byte-level BPE with 512 entries: no text is without an encoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_WORDS,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 2, trainer)
    return tokenizer


def _write_sentence_transformers_files(folder: Path, pooling: str, dimensions: int, max_tokens: int) -> None:
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    flags = {f"pooling_mode_{flag}": name == pooling for name, flag in modes.items()}
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": dimensions} | flags,
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
