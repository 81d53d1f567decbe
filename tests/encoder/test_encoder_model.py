"""The encoder's vectors are those that transformers and sentence-transformers compute."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import build_encoder
from transformers import (
    AutoModel,
    AutoTokenizer,
    CanineTokenizer,
    DPRConfig,
    FNetConfig,
    Gemma3Config,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PretrainedConfig,
    RobertaConfig,
    RobertaModel,
    T5Config,
    XLNetConfig,
    XLNetModel,
    XmodConfig,
)

from influcoder_ray.encoder.features import traits
from influcoder_ray.encoder.model import Encoder, _changes_with_length, check_encoder
from influcoder_ray.encoder.packing import why_not_packed
from influcoder_ray.encoder.specs import EncoderSpec
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.tokens import student_text

CPU = torch.device("cpu")
EXAMPLES = [
    Example("raw", "", "The capital of France is Paris.", "f:0"),
    Example("pair", "Which bread is this?", "It is made of flour, water and salt.", "f:1"),
    Example("short", "", "a", "f:2"),
    Example("foreign", "漢字 ?", "naïve 🙂", "f:3"),
    Example("long raw text", "", "Seven times eight is fifty-six. " * 20, "f:4"),
]


def loaded(folder: Path, **spec: Any) -> Encoder:
    return Encoder.load(EncoderSpec.model_validate({"path": str(folder), "max_tokens": 64} | spec), CPU)


def hugging_face_vectors(folder: Path, texts: list[str], pooling: str) -> np.ndarray:
    """One text after the other through transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in texts:
        encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
        with torch.no_grad():
            states = model(**encoded).last_hidden_state[0]
        vectors.append({"cls": states[0], "mean": states.mean(0), "last": states[-1]}[pooling])
    return torch.nn.functional.normalize(torch.stack(vectors)).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_equal_transformers_and_sentence_transformers(
    pooling: str, encoder_folder: Path, tmp_path: Path
) -> None:
    """Prevents an encoder that gives its users other vectors than it gave the report."""
    from sentence_transformers import SentenceTransformer

    encoder = loaded(encoder_folder, pooling=pooling)
    vectors, cut = encoder.embed(EXAMPLES)
    texts = [student_text(e, encoder.tokenizer) for e in EXAMPLES]
    assert vectors.dtype == np.float32
    assert cut == [False, False, False, False, True]
    np.testing.assert_allclose(vectors, hugging_face_vectors(encoder_folder, texts, pooling), atol=1e-5)
    encoder.save(tmp_path / "saved")
    np.testing.assert_allclose(vectors, hugging_face_vectors(tmp_path / "saved", texts, pooling), atol=1e-5)
    # Object stores know no empty folders: the encoder has to load without them.
    for folder in (tmp_path / "saved").iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    there = SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
    assert there.max_seq_length == 64
    np.testing.assert_allclose(vectors, there.encode(texts, batch_size=2), atol=1e-5)


def with_head(folder: Path) -> Encoder:
    """An encoder with a head of random weights."""
    encoder = loaded(folder)
    torch.manual_seed(1)
    head = encoder.new_head(5, 16)
    head.weight.copy_(torch.randn_like(head.weight) * 0.02)
    head.scale.copy_(torch.rand_like(head.scale) + 0.5)
    encoder.head = head
    return encoder


def test_a_head_is_saved_with_its_encoder_and_sentence_transformers_loads_both(
    encoder_folder: Path, tmp_path: Path
) -> None:
    """Prevents a trained head from being left behind, or queries from getting pool vectors."""
    from sentence_transformers import SentenceTransformer

    encoder = with_head(encoder_folder)
    encoder.save(tmp_path)
    again = loaded(tmp_path)
    there = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True, trust_remote_code=True)
    texts = [student_text(e, encoder.tokenizer) for e in EXAMPLES]
    for side, encode in (("queries", there.encode_query), ("pool", there.encode_document)):
        vectors, _ = encoder.embed(EXAMPLES, side)
        assert vectors.shape == (len(EXAMPLES), encoder.dimensions) == (len(EXAMPLES), 7)
        assert np.array_equal(again.embed(EXAMPLES, side)[0], vectors)
        np.testing.assert_allclose(encode(texts, batch_size=2), vectors, atol=1e-5)
    np.testing.assert_allclose(there.encode(texts), encoder.embed(EXAMPLES, "pool")[0], atol=1e-5)
    assert not np.allclose(encoder.embed(EXAMPLES, "queries")[0], encoder.embed(EXAMPLES, "pool")[0])


def test_the_separator_parts_prompt_from_response_for_the_head(encoder_folder: Path) -> None:
    """Prevents a student that cannot tell what was asked from what was answered."""
    encoder = with_head(encoder_folder)
    assert encoder.head is not None
    assert encoder.head.reading.separator == encoder.tokenizer.sep_token_id
    whole = [Example("a", "", "one two three four", "f:0"), Example("b", "one two", "three four", "f:1")]
    vectors, _ = encoder.embed(whole)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-2)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_a_folder_that_sentence_transformers_saved_is_read_with_its_pooling(
    pooling: str, encoder_folder: Path, tmp_path: Path
) -> None:
    """Prevents the start of the training from differing from the encoder that the user chose."""
    from sentence_transformers import SentenceTransformer, models  # type: ignore[attr-defined]

    there = SentenceTransformer(
        modules=[models.Transformer(str(encoder_folder)), models.Pooling(32, pooling_mode=pooling)],
        device="cpu",
    )
    there.save(str(tmp_path))
    encoder = loaded(tmp_path)
    assert encoder.pooling == pooling.removesuffix("token")
    texts = [student_text(e, encoder.tokenizer) for e in EXAMPLES[:4]]
    expected = there.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.embed(EXAMPLES[:4])[0], expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_saved_encoder_loads_to_the_same_vectors(
    pooling: str, encoder_folder: Path, tmp_path: Path
) -> None:
    """Prevents weights, tokens or pooling from being lost between training and embedding."""
    encoder = loaded(encoder_folder, pooling=pooling)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter.add_(0.01)
    encoder.save(tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    assert again.pooling == pooling
    assert np.array_equal(again.embed(EXAMPLES)[0], encoder.embed(EXAMPLES)[0])


def test_a_plain_transformers_folder_is_pooled_by_the_mean(tmp_path: Path) -> None:
    """Prevents a folder without modules.json from being refused."""
    assert loaded(build_encoder(tmp_path, pooling=None)).pooling == "mean"


@pytest.mark.parametrize("headed", [False, True])
def test_traits_come_with_the_vectors_that_are_computed_without_them(
    headed: bool, encoder_folder: Path
) -> None:
    """Prevents familiarity from being measured on another text, or from changing what it stands beside."""
    encoder = loaded(encoder_folder)
    if headed:
        encoder.head = encoder.new_head(3, 16)
        torch.nn.init.normal_(encoder.head.weight, generator=torch.Generator().manual_seed(0))
    done: list[int] = []
    vectors, found, cut, tokens = encoder.embed_with_traits(EXAMPLES, "queries", lambda it: it, done.append)
    expected, expected_cut = encoder.embed(EXAMPLES, "queries")
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert (cut, sum(done)) == (expected_cut, len(EXAMPLES))
    assert tokens == [len(window) for window in encoder.windows(EXAMPLES)[0]]
    with torch.no_grad():
        features = encoder.features(encoder.windows(EXAMPLES)[0])
    np.testing.assert_allclose(found, traits(features, encoder.reading).numpy(), atol=1e-5)
    sums, none = (
        encoder.embed_with_traits(some, "pool", lambda it: it.sum(1, keepdim=True))[1]
        for some in (EXAMPLES, [])
    )
    np.testing.assert_allclose(sums[:, 0], found.sum(1), rtol=1e-5)
    assert none.shape == (0, 1)


@pytest.fixture(scope="module")
def alone(encoder_folder: Path) -> tuple[Path, np.ndarray]:
    encoder = loaded(encoder_folder)
    return encoder_folder, np.concatenate([encoder.embed([example])[0] for example in EXAMPLES])


@given(st.lists(st.integers(0, len(EXAMPLES) - 1), max_size=12), st.integers(8, 400))
@settings(max_examples=30, deadline=None)
def test_neighbours_order_and_budget_do_not_touch_a_vector(
    alone: tuple[Path, np.ndarray], rows: list[int], tokens_per_batch: int
) -> None:
    """Prevents vectors that depend on which texts happened to share a batch, or that change places."""
    folder, expected = alone
    encoder = loaded(folder, tokens_per_batch=tokens_per_batch)
    done: list[int] = []
    vectors, _ = encoder.embed([EXAMPLES[row] for row in rows], report=done.append)
    assert vectors.shape == (len(rows), encoder.dimensions)
    assert sum(done) == len(rows)
    np.testing.assert_allclose(vectors, expected[rows], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("keeps_layers", [False, True])
def test_batches_side_by_side_have_the_bits_of_one_after_the_other(
    encoder_folder: Path, keeps_layers: bool
) -> None:
    """Prevents vectors that depend on a worker's cores, or a batch's layers from being another's."""
    before, many = torch.get_num_threads(), EXAMPLES * 20
    found = []
    try:
        for cores in (1, 2, 5):
            torch.set_num_threads(cores)
            encoder = loaded(encoder_folder, tokens_per_batch=40)
            if keeps_layers:
                vectors, read, _, _ = encoder.embed_with_traits(many, "pool", lambda traits: traits)
                found.append(np.hstack([vectors, read]))
            else:
                found.append(encoder.embed(many)[0])
            assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_a_model_that_changes_with_the_longest_text_has_one_batch_at_a_time() -> None:
    """Prevents threads from changing each other's rotary embeddings."""
    plain = ModernBertConfig(
        **{"vocab_size": 211, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1},
        num_attention_heads=4,
        pad_token_id=0,
    )
    assert not _changes_with_length(ModernBertModel(plain))
    module = torch.nn.Module()
    module.rope_type = {"full_attention": "dynamic", "sliding_attention": "default"}  # type: ignore[assignment]
    assert _changes_with_length(torch.nn.Sequential(module))


def test_dropout_is_off_though_gradients_flow(encoder_folder: Path) -> None:
    """Prevents a step's gradient from depending on how its texts were spread over workers."""
    encoder = loaded(encoder_folder)
    windows, _ = encoder.windows(EXAMPLES)
    first, second = encoder.vectors(windows), encoder.vectors(windows)
    assert first.requires_grad
    assert torch.equal(first, second)


def refusal(folder: Path | str, **spec: Any) -> str:
    """The one line with which a folder is refused, before weights are read and with them."""
    messages = []
    encoder = EncoderSpec.model_validate({"path": str(folder), "max_tokens": 32} | spec)
    for attempt in (lambda: check_encoder(encoder), lambda: Encoder.load(encoder, CPU)):
        with pytest.raises(UserError) as caught:
            attempt()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    return messages[0]


@pytest.fixture
def copied(encoder_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder_folder, tmp_path / "copy"))


@pytest.mark.parametrize("path", ["missing", "sentence-transformers/all-MiniLM-L6-v2"])
def test_what_is_no_folder_is_refused_without_asking_a_hub(path: str) -> None:
    """Prevents a mistyped path from becoming a download."""
    assert f"encoder.path: {path} is no folder" in refusal(path)


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _encoder_decoder(folder: Path) -> None:
    T5Config().save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_config, "give a folder with config.json"),
        (_no_weights, "give a folder with model.safetensors"),
        (_no_tokenizer, "give a folder with tokenizer.json"),
        (_encoder_decoder, "give an encoder alone"),
    ],
)
def test_a_folder_that_holds_no_encoder_is_refused(
    spoil: Callable[[Path], None], said: str, copied: Path
) -> None:
    """Prevents a traceback, or a failure after the first work."""
    spoil(copied)
    assert said in refusal(copied)


def test_a_window_wider_than_the_positions_is_refused(encoder_folder: Path) -> None:
    """Prevents an index out of range at the first long text."""
    assert "give at most 128" in refusal(encoder_folder, max_tokens=129)
    loaded(encoder_folder, max_tokens=128).embed(EXAMPLES)


def test_positions_of_a_roberta_begin_behind_its_padding(tmp_path: Path, copied: Path) -> None:
    """Prevents a window of 514 on a model that has places for 512."""
    config = RobertaConfig(
        vocab_size=471,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=34,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    RobertaModel(config).save_pretrained(copied)
    assert "give at most 33" in refusal(copied, max_tokens=34)
    encoder = loaded(copied, max_tokens=33)
    vectors, cut = encoder.embed(EXAMPLES)
    assert cut[-1]
    alone = np.concatenate([encoder.embed([example])[0] for example in EXAMPLES])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": ["mean", "max"]},
        {},
    ],
)
def test_a_pooling_that_is_not_known_is_refused_unless_one_is_named(
    config: dict[str, object], copied: Path
) -> None:
    """Prevents vectors of half the model's pooling, silently."""
    (copied / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert "set encoder.pooling" in refusal(copied)
    assert loaded(copied, pooling="mean").pooling == "mean"


def test_a_layer_behind_the_pooling_is_refused_unless_a_pooling_is_named(copied: Path) -> None:
    """Prevents other vectors than the user's encoder has, and a comparison with them, silently."""
    modules = json.loads((copied / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (copied / "modules.json").write_text(json.dumps(modules))
    assert "puts a Dense behind its token states" in refusal(copied)
    assert loaded(copied, pooling="mean").pooling == "mean"


SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        # It transforms a text together with its padding.
        (FNetConfig(**SMALL), "changes with the padding of its batch"),
        # Its output is one vector a text.
        (DPRConfig(**SMALL), "does not give each token a state of 32 numbers"),
        # It wants to be told the language.
        (XmodConfig(**SMALL, languages=["a", "b"]), "does not take token ids alone (Input language unknown"),
    ],
    ids=["fourier", "one vector", "language"],
)
def test_a_model_without_token_states_of_each_text_by_itself_is_refused(
    config: PretrainedConfig, said: str, copied: Path
) -> None:
    """Prevents vectors that depend on which texts share a batch, and tracebacks in the midst of a run."""
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(copied)
    with pytest.raises(UserError) as caught:
        loaded(copied)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encoder_of_more_than_texts_is_refused(copied: Path) -> None:
    """Prevents a traceback from a config that has its sizes in parts."""
    Gemma3Config().save_pretrained(copied)
    assert "has no hidden_size; give an encoder of texts alone" in refusal(copied)


def test_a_tokenizer_that_does_not_know_places_is_refused(copied: Path) -> None:
    """Prevents a traceback at the first long text that has a prompt."""
    for file in copied.glob("token*"):
        file.unlink()
    CanineTokenizer().save_pretrained(copied)
    assert "cannot say where in a text its tokens stand" in refusal(copied)


def test_an_encoder_without_a_limit_of_positions_is_taken(copied: Path) -> None:
    """Prevents a refusal that asks for at most -1 tokens."""
    torch.manual_seed(0)
    XLNetModel(XLNetConfig(vocab_size=512, d_model=32, n_layer=2, n_head=4, d_inner=48)).save_pretrained(
        copied
    )
    encoder = loaded(copied)
    texts = [student_text(e, encoder.tokenizer) for e in EXAMPLES]
    expected = hugging_face_vectors(copied, texts, "mean")
    np.testing.assert_allclose(encoder.embed(EXAMPLES)[0], expected, atol=1e-5)


@pytest.mark.parametrize("headed", [False, True])
def test_bfloat16_gives_nearly_the_same_vectors_and_leaves_the_weights_as_they_are(
    headed: bool, encoder_folder: Path
) -> None:
    """Prevents a loss of precision that ranks differently, and weights whose small steps are rounded away."""
    exact = with_head(encoder_folder) if headed else loaded(encoder_folder)
    spec = exact.spec.model_copy(update={"dtype": "bfloat16"})
    rough = Encoder(exact.model, exact.tokenizer, exact.pooling, spec, exact.head)
    left, right = (encoder.embed(EXAMPLES, "queries")[0] for encoder in (exact, rough))
    assert right.dtype == np.float32
    assert not np.array_equal(left, right)
    assert (left * right).sum(1).min() > 0.999
    rough.vectors(rough.windows(EXAMPLES)[0], "queries").square().sum().backward()
    gradients = [p.grad for p in rough.model.parameters() if p.grad is not None]
    assert gradients
    assert {it.dtype for it in (*rough.model.parameters(), *gradients)} == {torch.float32}


def raw(folder: Path, windows: list[list[int]]) -> torch.Tensor:
    """The mean state of every token of some windows, each read by itself: (h,)."""
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = [model(input_ids=torch.tensor([w])).last_hidden_state[0] for w in windows]
    return torch.cat(states).mean(0)


def test_a_long_text_is_the_mean_of_its_windows_where_that_is_asked_for(encoder_folder: Path) -> None:
    """Prevents a long document from being its first page, silently, where all of it was asked for."""
    encoder = loaded(encoder_folder, long_texts="mean", most_windows=3, max_tokens=32)
    tokens = encoder.tokenizer("Seven times eight is fifty-six. " * 7, add_special_tokens=False)["input_ids"]
    assert 60 < len(tokens) <= 90
    opening, closing = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
    windows = [[opening, *tokens[at : at + 30], closing] for at in range(0, len(tokens), 30)]
    texts = [Example("long", "", "Seven times eight is fifty-six. " * 7, "f:0"), EXAMPLES[2], EXAMPLES[4]]
    done: list[int] = []
    vectors, cut = encoder.embed(texts, report=done.append)
    expected = torch.nn.functional.normalize(raw(encoder_folder, windows), dim=0)
    np.testing.assert_allclose(vectors[0], expected.numpy(), atol=1e-5)
    assert (cut, sum(done)) == ([False, False, True], 3)
    # A short text stays what it is, to the bit, whatever stands beside it.
    assert np.array_equal(vectors[1], encoder.embed([EXAMPLES[2]])[0][0])
    *_, counted = encoder.embed_with_traits(texts, "pool", lambda it: it[:, :1])
    assert counted[0] == sum(len(window) for window in windows)
    assert counted[2] == 3 * 32


@pytest.mark.parametrize("headed", [False, True])
def test_long_texts_have_vectors_and_traits_of_one_piece(headed: bool, encoder_folder: Path) -> None:
    """Prevents familiarity from being measured on another part of a document than its vector."""
    encoder = with_head(encoder_folder) if headed else loaded(encoder_folder)
    spec = encoder.spec.model_copy(update={"long_texts": "mean", "max_tokens": 16})
    encoder = Encoder(encoder.model, encoder.tokenizer, encoder.pooling, spec, encoder.head)
    vectors, found, _, _ = encoder.embed_with_traits(EXAMPLES, "pool", lambda it: it)
    np.testing.assert_allclose(vectors, encoder.embed(EXAMPLES)[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    hidden = encoder.reading.hidden
    np.testing.assert_allclose(np.linalg.norm(found[:, :hidden], axis=1), 1, atol=1e-5)
    first = Encoder(
        encoder.model,
        encoder.tokenizer,
        encoder.pooling,
        spec.model_copy(update={"long_texts": "first"}),
        encoder.head,
    )
    by_first = first.embed(EXAMPLES)[0]
    assert not np.allclose(vectors[4], by_first[4], atol=1e-3)
    np.testing.assert_allclose(vectors[2], by_first[2], atol=1e-6)


def test_rows_beyond_one_step_keep_their_places(
    encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents rows of a large unit, which is done in several steps, from getting each other's vectors."""
    encoder = loaded(encoder_folder)
    expected, _ = encoder.embed(EXAMPLES)
    monkeypatch.setattr("influcoder_ray.encoder.model._ROWS_AT_FIRST", 1)
    monkeypatch.setattr("influcoder_ray.encoder.model._ROWS_AT_ONCE", 2)
    done: list[int] = []
    vectors, cut = encoder.embed(EXAMPLES, report=done.append)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert (cut, sum(done)) == ([False, False, False, False, True], len(EXAMPLES))


def test_embedding_leaves_the_encoder_as_it_was_trained_and_to_be_trained(encoder_folder: Path) -> None:
    """Prevents an epoch's vectors from being made with weights of the epoch before, or its gradients lost."""
    encoder = loaded(encoder_folder)
    windows, _ = encoder.windows(EXAMPLES)
    before = encoder.vectors(windows)
    encoder.embed(EXAMPLES)
    assert torch.equal(encoder.vectors(windows), before)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter.mul_(1.1)
    after, _ = encoder.embed(EXAMPLES)
    np.testing.assert_allclose(after, encoder.vectors(windows).detach().numpy(), atol=1e-5)
    assert not np.allclose(after, before.detach().numpy(), atol=1e-3)
    encoder.vectors(windows).square().sum().backward()
    assert next(encoder.model.parameters()).grad is not None


def test_an_encoder_that_cannot_be_packed_is_padded(tmp_path: Path, copied: Path) -> None:
    """Prevents vectors that mix texts, or a refusal, where an encoder takes no positions."""
    torch.manual_seed(0)
    config = MPNetConfig(
        vocab_size=471, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
    )
    MPNetModel(config).save_pretrained(copied)
    encoder = loaded(copied)
    assert why_not_packed(encoder.model) is not None
    vectors, _ = encoder.embed(EXAMPLES)
    alone = np.concatenate([encoder.embed([example])[0] for example in EXAMPLES])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
