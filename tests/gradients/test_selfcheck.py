"""The self-check finds what is wrong with gradients, and measures what is right as it is."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SENTENCES, build_causal_lm, causal_lm
from transformers import LlamaForCausalLM, MambaConfig

from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients import selfcheck
from influcoder_ray.gradients.selfcheck import SelfCheck, self_check
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher

CPU = torch.device("cpu")
EXAMPLES = [
    Example(f"e{row}", "" if row % 3 == 0 else f"Go on with {row}:", SENTENCES[row], f"f:{row}")
    for row in range(len(SENTENCES))
]
ADAPTER = AdapterSpec(rank=4)


def checked(folder: Path, examples: list[Example] = EXAMPLES, **model: object) -> SelfCheck:
    spec = ModelSpec(path=str(folder), max_tokens=64, **model)  # type: ignore[arg-type]
    return self_check(spec, ADAPTER, examples, seed=3, device=CPU, widths=(4096, 1024))


def change(folder: Path, name: str, rows: object, value: float) -> None:
    """Write a value into some rows of one of the saved weights."""
    weights = load_file(folder / "model.safetensors")
    weights[name][rows] = value  # type: ignore[index]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A tiny model of its own, for a test to break."""
    return build_causal_lm(tmp_path / "broken")


def test_modules_that_are_never_called_are_named(broken: Path) -> None:
    """Prevents an adapter from standing where it sees nothing, unsaid."""
    config = MambaConfig(vocab_size=512, hidden_size=32, state_size=8, num_hidden_layers=2, time_step_rank=4)
    causal_lm(config).save_pretrained(broken)  # type: ignore[operator]
    check = checked(broken)
    # Their weights are multiplied by, the modules are not called.
    assert check.idle == ("backbone.layers.0.mixer.dt_proj", "backbone.layers.1.mixer.dt_proj")
    assert not check.faults


def test_a_sound_model_has_no_faults_and_its_gradients_own_figures(causal_lm_folder: Path) -> None:
    """Prevents a self-check that cries wolf, or that measures something else than it says."""
    check = checked(causal_lm_folder)
    assert not check.faults
    assert not check.left_out
    assert not check.idle
    assert check.example_ids == tuple(e.example_id for e in EXAMPLES)
    spec = ModelSpec(path=str(causal_lm_folder), max_tokens=64)
    teacher = Teacher.load(spec, ADAPTER, seed=3, device=CPU)
    low = Teacher.load(spec.model_copy(update={"dtype": "bfloat16"}), ADAPTER, seed=3, device=CPU)
    tokens = teacher.tokens(EXAMPLES)
    gradients = teacher.gradients(tokens).astype(np.float64)
    assert check.tokens == tuple(len(t.ids) for t in tokens)
    assert check.gradient_size == gradients.shape[1]
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    np.testing.assert_allclose(check.exact_cosines, (unit @ unit.T)[np.triu_indices(8, 1)], atol=1e-5)
    assert check.batch_errors.keys() == {"float32"}
    assert check.batch_errors["float32"].shape == (8,)
    rounded = np.concatenate([low.gradients([t]) for t in tokens]).astype(np.float64)
    cosines = (rounded * unit).sum(1) / np.linalg.norm(rounded, axis=1)
    np.testing.assert_allclose(check.cosines["bfloat16"], cosines, atol=1e-6)
    assert check.cosines["bfloat16"].max() < 1 - 1e-6
    assert [w.width for w in check.widths] == [1024, 4096]


def positions_of_passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, torch.dtype, str]]:
    """Filled with positions, number type and precision of products of every forward pass of gradients."""
    passes: list[tuple[int, torch.dtype, str]] = []
    gradients, forward = Teacher.gradients, LlamaForCausalLM.forward
    within = []

    def noted_gradients(self: Teacher, tokens: list[Tokens]) -> np.ndarray:
        within.append(tokens)
        found = gradients(self, tokens)
        within.clear()
        return found

    def noted_forward(self: LlamaForCausalLM, input_ids: torch.Tensor, **rest: Any) -> Any:
        if within:
            passes.append((input_ids.numel(), self.dtype, torch.get_float32_matmul_precision()))
        return forward(self, input_ids, **rest)

    monkeypatch.setattr(Teacher, "gradients", noted_gradients)
    monkeypatch.setattr(LlamaForCausalLM, "forward", noted_forward)
    return passes


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_examples_meet_in_a_batch_however_small_the_budget(
    layout: str, causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents comparing each example alone with itself alone, which could not fail."""
    passes = positions_of_passes(monkeypatch)
    check = checked(causal_lm_folder, tokens_per_batch=8, layout=layout)
    in_float32 = [positions for positions, dtype, _ in passes if dtype == torch.float32]
    assert in_float32[:8] == list(check.tokens)
    assert len(in_float32[8:]) < 8
    assert in_float32[8] > max(check.tokens)


def leaking(monkeypatch: pytest.MonkeyPatch, share: float, dtype: torch.dtype) -> None:
    """Let neighbours change a gradient by a share of its length, in models of one number type."""
    gradients = Teacher.gradients

    def leaky(self: Teacher, tokens: list[Tokens]) -> np.ndarray:
        found = gradients(self, tokens)
        if len(tokens) > 1 and next(self.model.parameters()).dtype == dtype:
            found[2] += share * np.linalg.norm(found[2]) / np.sqrt(found.shape[1])
        return found

    monkeypatch.setattr(Teacher, "gradients", leaky)


def test_an_example_that_its_neighbours_change_is_named(
    causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents influence that depends on who shared a batch from passing as sound."""
    leaking(monkeypatch, 1e-3, torch.float32)
    check = checked(causal_lm_folder)
    (fault,) = check.faults
    assert (fault.kind, fault.dtype) == ("batch", "float32")
    assert fault.what.startswith("e2:")
    assert "model.layout" in fault.remedy
    assert check.batch_errors["float32"][2] == pytest.approx(1e-3, rel=0.01)
    assert np.delete(check.batch_errors["float32"], 2).max() <= 1e-5


def test_bfloat16_has_a_tolerance_of_its_own_and_is_looked_at_where_it_is_asked_for(
    causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents rounding of bfloat16 from being called a fault, and real leaks in it from passing."""
    check = checked(causal_lm_folder, dtype="bfloat16")
    assert not check.faults
    assert check.batch_errors.keys() == {"float32", "bfloat16"}
    leaking(monkeypatch, 0.5, torch.bfloat16)
    assert not checked(causal_lm_folder).faults
    (fault,) = checked(causal_lm_folder, dtype="bfloat16").faults
    assert (fault.kind, fault.dtype) == ("batch", "bfloat16")


@pytest.mark.parametrize("noise", [1.0, math.nan])
def test_a_bfloat16_gradient_that_is_noise_is_a_fault_only_where_bfloat16_is_asked_for(
    noise: float, causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents plausible noise in low precision from being used, and a float32 user from being alarmed."""
    gradients = Teacher.gradients

    def noisy(self: Teacher, tokens: list[Tokens]) -> np.ndarray:
        found = gradients(self, tokens)
        if next(self.model.parameters()).dtype == torch.bfloat16:
            size = found.shape[1]
            found += np.linalg.norm(found, axis=1, keepdims=True) * noise / math.sqrt(size)
        return found

    monkeypatch.setattr(Teacher, "gradients", noisy)
    assert not checked(causal_lm_folder).faults
    check = checked(causal_lm_folder, dtype="bfloat16")
    named = [fault.what for fault in check.faults if fault.kind == "precision"]
    assert [what.split(":")[0] for what in named] == [e.example_id for e in EXAMPLES]
    assert check.cosines["bfloat16"].max() < 0.98
    assert np.isinf(check.batch_errors["bfloat16"]).all() == math.isnan(noise)


def test_exactly_the_example_whose_gradient_is_not_finite_is_named_and_the_others_are_measured(
    broken: Path,
) -> None:
    """Prevents one broken row from hiding behind, or spoiling, the figures of the others."""
    teacher = Teacher.load(ModelSpec(path=str(broken), max_tokens=64), ADAPTER, seed=3, device=CPU)
    ids = [set(t.ids) for t in teacher.tokens(EXAMPLES)]
    own = ids[4].difference(*(other for row, other in enumerate(ids) if row != 4))
    change(broken, "model.embed_tokens.weight", sorted(own), math.nan)
    check = checked(broken)
    (fault,) = check.faults
    assert fault.kind == "gradient"
    assert fault.what == "e4: its gradient is not finite"
    assert np.isnan(check.batch_errors["float32"]).tolist() == [row == 4 for row in range(8)]
    assert np.isnan(check.cosines["bfloat16"]).tolist() == [row == 4 for row in range(8)]
    assert len(check.exact_cosines) == 7 * 6 / 2
    assert all(w.mean_error < 0.1 for w in check.widths)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [("model.norm.weight", math.inf, "not finite"), ("lm_head.weight", 0.0, "zero")],
)
def test_a_model_without_a_usable_gradient_has_every_row_named_and_no_width_advised(
    broken: Path, name: str, value: float, what: str
) -> None:
    """Prevents advice, or a crash, from gradients that have no cosines."""
    change(broken, name, slice(None), value)
    check = checked(broken)
    assert [fault.what for fault in check.faults] == [f"e{row}: its gradient is {what}" for row in range(8)]
    assert check.widths == ()
    assert check.advised_width is None


def test_examples_without_a_token_to_predict_are_left_out_and_said_to_be(causal_lm_folder: Path) -> None:
    """Prevents an example without a loss from ending the check, or from counting as looked at."""
    empty = Example("empty", "", "", "f:9")
    check = checked(causal_lm_folder, [EXAMPLES[0], empty, *EXAMPLES[1:4]])
    assert check.left_out == (("empty", "no token to predict"),)
    assert "empty" not in check.example_ids
    with pytest.raises(UserError, match="2 of 3 examples have a token to predict"):
        checked(causal_lm_folder, [*EXAMPLES[:2], empty])


def test_gradients_that_do_not_fit_into_memory_are_refused_before_any_weight_is_loaded(
    causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents the machine's death by a check of a large model, or a minute of loading before a refusal."""
    size = checked(causal_lm_folder).gradient_size
    weights = sum(w.numel() for w in load_file(causal_lm_folder / "model.safetensors").values())
    needed = 4 * weights + 4 * 4 * 8 * size
    monkeypatch.setattr(selfcheck, "free_memory_bytes", lambda: needed)
    assert not checked(causal_lm_folder).faults
    monkeypatch.setattr(selfcheck, "free_memory_bytes", lambda: needed - 1)
    monkeypatch.setattr(Teacher, "load", None)
    with pytest.raises(UserError, match=rf"8 gradients of {size:,} numbers .* take fewer examples"):
        checked(causal_lm_folder)


def test_a_sketch_that_errs_more_than_countsketch_does_is_a_fault(
    causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a broken hash or kernel, which still gives cosines of sorts, from passing as sound."""
    add = CountSketch.add

    def biased(self: CountSketch, sketches: torch.Tensor, gradients: torch.Tensor, name: str) -> None:
        add(self, sketches, gradients, name)
        sketches[:, 0] += gradients.flatten(1).norm(dim=1)

    monkeypatch.setattr(CountSketch, "add", biased)
    check = checked(causal_lm_folder)
    assert [(fault.kind, fault.what.split(":")[0]) for fault in check.faults] == [
        ("sketch", "width 1,024"),
        ("sketch", "width 4,096"),
    ]


def test_rows_that_are_one_and_the_same_are_no_fault(causal_lm_folder: Path) -> None:
    """Prevents rounding from counting as a sketch's fault where the error to expect is zero."""
    same = [Example(str(row), "", SENTENCES[0], f"f:{row}") for row in range(4)]
    check = checked(causal_lm_folder, same)
    assert not check.faults
    assert check.spread == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("before", ["highest", "high"])
def test_the_reference_is_float32_in_full_and_tf32_is_looked_at_where_it_is_asked_for(
    before: str, causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a reference that is TF32 itself, and a check that changes what runs after it."""
    passes = positions_of_passes(monkeypatch)
    torch.set_float32_matmul_precision(before)
    try:
        check = checked(causal_lm_folder, dtype="tf32")
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not check.faults
    assert check.batch_errors.keys() == {"float32", "tf32"}
    assert check.cosines.keys() == {"tf32", "bfloat16"}
    assert check.cosines["tf32"].min() > 0.999
    precisions = [precision for _, dtype, precision in passes if dtype == torch.float32]
    first_high = precisions.index("high")
    assert set(precisions[:first_high]) == {"highest"}
    assert set(precisions[first_high:]) == {"high"}
    assert first_high > 8
