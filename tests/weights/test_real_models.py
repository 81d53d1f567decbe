"""The claims that only real weights can prove: exact gradients in use, and an encoder that learns."""

import json
from pathlib import Path

import numpy as np
import peft
import pyarrow.parquet as pq
import pytest
import sentence_transformers
import torch
import transformers
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings, settings_from
from influcoder_ray.demo.run import demo_data, demo_settings
from influcoder_ray.demo.weights import fetch_causal_lm, fetch_encoder
from influcoder_ray.examples import Example
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def causal_lm() -> Path:
    return fetch_causal_lm(print)


def test_the_fetched_model_speaks(causal_lm: Path) -> None:
    """Weights that were dequantised wrongly still load, and still have a loss."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(causal_lm)
    model = transformers.AutoModelForCausalLM.from_pretrained(causal_lm)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=6, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])


def test_batched_gradients_equal_peft_one_at_a_time(causal_lm: Path) -> None:
    """At real width and depth, rounding or a padded row could part what tiny models keep together."""
    examples = [
        Example("a", "What is 7 times 8?", "It is 56.", "f:0"),
        Example(
            "b", "Name the capital of Japan and say where it lies.", "Tokyo, on the island of Honshu.", "f:1"
        ),
        Example("c", "", "Bread is made of flour, water, salt and yeast.", "f:2"),
        # A few labelled tokens: products of few rows by the whole vocabulary round badly.
        Example("d", "What is seven times eight?", "56", "f:3"),
        Example("e", "Is a whale a fish?", "No", "f:4"),
    ]
    spec = ModelSpec(path=str(causal_lm), template="plain", max_tokens=64)
    teacher = Teacher.load(spec, AdapterSpec(rank=4), seed=0, device=torch.device("cpu"))
    tokens = teacher.tokens(examples)
    ours = teacher.gradients(tokens)

    base = transformers.AutoModelForCausalLM.from_pretrained(causal_lm)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    model = peft.get_peft_model(base, config).eval()
    modules = dict(model.get_base_model().named_modules())
    layers = [modules[w.target.name] for w in teacher.weights]
    for layer, weights in zip(layers, teacher.weights, strict=True):
        layer.lora_A["default"].weight.data.copy_(weights.a)
    for row, t in enumerate(tokens):
        model.zero_grad()
        ids = torch.tensor([t.ids])
        labels = ids.clone()
        labels[0, : t.labelled_from] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        alone = torch.cat([layer.lora_B["default"].weight.grad.flatten() for layer in layers]).numpy()
        assert np.linalg.norm(ours[row] - alone) <= 1e-5 * np.linalg.norm(alone)
        by_itself = teacher.gradients([t])[0]
        assert np.linalg.norm(ours[row] - by_itself) <= 1e-5 * np.linalg.norm(by_itself)


@pytest.fixture(scope="module")
def distilled(causal_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> PipelineSettings:
    """The demo on a part of its sample: some two minutes on two cores."""
    folder = tmp_path_factory.mktemp("distilled")
    whole = demo_settings(folder, causal_lm, fetch_encoder(print)).model_dump(mode="json")
    whole["sample"]["pool"] = 120
    whole["evaluate"]["fidelity_examples"] = 8
    settings = settings_from(whole, source="test")
    corpus, queries = demo_data()
    pq.write_table(corpus, settings.corpus.path)
    # Facts alone, in clearly different families: a part of the demo that is learnt from little.
    pq.write_table(queries[-56:], settings.queries.path)
    stages = ("sample", "sketch", "distill", "evaluate")
    for stage in stages:
        pipeline.run(settings, stages=(stage,), console=Console(quiet=True))
    return settings


def test_a_distilled_encoder_beats_the_untrained_one_on_held_out_truth(distilled: PipelineSettings) -> None:
    """An encoder that learnt nothing would attribute by likeness of text, and call it influence."""
    methods = json.loads((Path(distilled.output) / "evaluation.json").read_bytes())["methods"]
    for figure in ("per_query_rho", "aggregated_rho"):
        trained, untrained = (methods[m][figure]["mean"] for m in ("encoder", "untrained_encoder"))
        assert trained > untrained + 0.03, methods


def test_sketches_keep_the_cosines_of_real_gradients(distilled: PipelineSettings) -> None:
    """A sketch that scrambles influence would teach the encoder noise."""
    fidelity = json.loads((Path(distilled.output) / "evaluation.json").read_bytes())["sketch_fidelity"]
    assert fidelity["rho"] > 0.9
    assert fidelity["mean_absolute_error"] < 0.02


def test_sentence_transformers_gives_the_distilled_encoders_vectors(distilled: PipelineSettings) -> None:
    """What was trained here must be of use in other people's programs."""
    from influcoder_ray.encoder.model import Encoder

    folder = str(Path(distilled.output) / "encoder")
    texts = [Example(str(i), "", r["response"], "f:0") for i, r in enumerate(demo_data()[1].to_pylist()[:12])]
    spec = distilled.encoder.model_copy(update={"path": folder})
    ours, _ = Encoder.load(spec, torch.device("cpu")).embed(texts)
    theirs = sentence_transformers.SentenceTransformer(folder, device="cpu", trust_remote_code=True).encode(
        [e.text for e in texts]
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
