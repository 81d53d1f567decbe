"""Adam's direction for an example, against what torch's own AdamW would step."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import causal_config, causal_lm
from torch import Tensor

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.adapter import TargetModule, find_targets
from influcoder_ray.gradients.optimizer import OptimizerState, save_optimizer_state
from influcoder_ray.gradients.specs import AdapterSpec

CONFIG = causal_config("llama", num_hidden_layers=1)
BETAS, EPS = (0.8, 0.95), 1e-6


@dataclass(frozen=True)
class FineTune:
    """A tiny PEFT model after some steps of AdamW, and what a user keeps of it."""

    model: PeftModel
    optimizer: torch.optim.AdamW
    targets: list[TargetModule]
    path: Path


def ids(seed: int) -> Tensor:
    return torch.randint(3, 500, (1, 9), generator=torch.Generator().manual_seed(seed))


def backward(model: PeftModel, optimizer: torch.optim.Optimizer, example: Tensor) -> None:
    optimizer.zero_grad()
    model(input_ids=example, labels=example).loss.backward()


def fine_tune(folder: Path, *, steps: int = 2, amsgrad: bool = False) -> FineTune:
    torch.manual_seed(0)
    model = get_peft_model(
        causal_lm(CONFIG), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=BETAS, eps=EPS, weight_decay=0.1, amsgrad=amsgrad)
    for seed in range(steps):
        backward(model, optimizer, ids(seed))
        optimizer.step()
    model.save_pretrained(folder)
    return FineTune(
        model,
        optimizer,
        find_targets(CONFIG, AdapterSpec(path=str(folder))),
        folder / "optimizer.safetensors",
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> FineTune:
    """Two steps, saved. Read only."""
    tuned = fine_tune(tmp_path_factory.mktemp("adapter"))
    save_optimizer_state(tuned.optimizer, tuned.model.named_parameters(), tuned.path)
    return tuned


def file_name(parameter: str) -> str:
    """The name in our terms of a LoRA matrix of a PEFT model, "" of anything else."""
    name = parameter.removeprefix("base_model.model.").removesuffix(".default.weight")
    return name if name.endswith(("lora_A", "lora_B")) else ""


def as_captured(name: str, matrix: Tensor) -> Tensor:
    """A gradient (1, rows, columns) as it reaches the sketch: that of B transposed."""
    return (matrix.T if name.endswith("lora_B") else matrix).unsqueeze(0)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_direction_is_what_adamw_would_step(tmp_path: Path, steps: int) -> None:
    """Prevents moments of the wrong matrix, transposed ones, and a step count that is one off."""
    tuned = fine_tune(tmp_path, steps=steps)
    save_optimizer_state(tuned.optimizer, tuned.model.named_parameters(), tuned.path)
    state = OptimizerState.load(tuned.path, tuned.targets)
    model, optimizer = copy.deepcopy((tuned.model, tuned.optimizer))
    optimizer.param_groups[0].update(lr=1.0, weight_decay=0.0)
    backward(model, optimizer, ids(100))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if file_name(n)}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if file_name(n)}
    optimizer.step()
    stepped = {n: before[n] - p.detach() for n, p in model.named_parameters() if n in before}
    assert len(stepped) == 2 * len(tuned.targets) == 4
    for parameter, expected in stepped.items():
        name = file_name(parameter)
        direction = state.direction(name, as_captured(name, gradients[parameter]))
        assert direction.dtype == torch.float32
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(direction, as_captured(name, expected), rtol=1e-5, atol=1e-6)


def test_each_example_has_its_own_direction_and_keeps_its_gradient(tuned: FineTune) -> None:
    """Prevents moments that one example of a batch leaves behind for the next, and gradients in place."""
    state = OptimizerState.load(tuned.path, tuned.targets)
    target = tuned.targets[0]
    gradients = torch.randn(5, target.rank, target.out_features, generator=torch.Generator().manual_seed(0))
    kept = gradients.clone()
    together = state.direction(f"{target.name}.lora_B", gradients)
    assert torch.equal(gradients, kept)
    for row in range(5):
        alone = state.direction(f"{target.name}.lora_B", gradients[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-6, atol=0)


def test_the_file_names_matrices_as_peft_does_and_holds_no_pickle(tuned: FineTune) -> None:
    """Prevents a file that only we could read, and one that does not fit the adapter beside it."""
    adapter = load_file(tuned.path.parent / "adapter_model.safetensors")
    saved = load_file(tuned.path)
    assert saved.keys() == {f"{name}.{moment}" for name in adapter for moment in ("exp_avg", "exp_avg_sq")}
    for name, matrix in adapter.items():
        assert saved[f"{name}.exp_avg"].shape == matrix.shape
    with safe_open(tuned.path, framework="pt") as file:
        numbers = file.metadata()
    assert {k: float(v) for k, v in numbers.items()} == {
        "step": 2,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "eps": EPS,
    }


Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t, n: t.pop(f"{Q_A}.exp_avg"), "another adapter .*q_proj.lora_A.weight.exp_avg: none there"),
        (lambda t, n: t.update({f"{Q_A}.exp_avg": torch.zeros(3, 32)}), r"\(3, 32\) there, \(4, 32\) in"),
        (lambda t, n: t.update({"other.exp_avg": torch.zeros(1)}), "another adapter .*other.exp_avg"),
        (lambda t, n: t[f"{Q_A}.exp_avg_sq"].sub_(1), "exp_avg_sq holds a negative number"),
        (lambda t, n: t[f"{Q_A}.exp_avg"].fill_(torch.nan), "exp_avg holds .* not finite"),
        (lambda t, n: n.pop("step"), "metadata has no step"),
        (lambda t, n: n.pop("eps"), "metadata has no eps"),
        (lambda t, n: n.update(beta1="high"), "beta1 is 'high'"),
        (lambda t, n: n.update(beta2="nan"), "beta2 is nan"),
        (lambda t, n: n.update(step="0"), "no Adam has step 0.0"),
        (lambda t, n: n.update(beta2="1.0"), "beta2 1.0"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_one_line(
    tuned: FineTune, tmp_path: Path, spoil: Callable[[dict[str, Tensor], dict[str, str]], Any], message: str
) -> None:
    """Prevents directions from another adapter's moments, or NaN in every sketch of the pool."""
    with safe_open(tuned.path, framework="pt") as file:
        tensors, numbers = load_file(tuned.path), dict(file.metadata())
    spoil(tensors, numbers)
    save_file(tensors, tmp_path / "spoilt.safetensors", metadata=numbers)
    with pytest.raises(UserError, match=message) as caught:
        OptimizerState.load(tmp_path / "spoilt.safetensors", tuned.targets)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_or_no_safetensors_is_refused(tuned: FineTune, tmp_path: Path) -> None:
    """Prevents a pickled optimizer.pt from being opened, or from ending in a traceback."""
    with pytest.raises(UserError, match="no such file"):
        OptimizerState.load(tmp_path / "optimizer.safetensors", tuned.targets)
    torch.save(tuned.optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match="is no safetensors file") as caught:
        OptimizerState.load(tmp_path / "optimizer.pt", tuned.targets)
    assert "\n" not in str(caught.value)


def test_an_optimizer_whose_steps_the_formula_does_not_know_is_not_saved(
    tuned: FineTune, tmp_path: Path
) -> None:
    """Prevents a state that loads and gives directions that no training took."""
    path = tmp_path / "state.safetensors"
    parameters = list(tuned.model.named_parameters())
    refused: list[tuple[torch.optim.Optimizer, list[tuple[str, Tensor]], str]] = [
        (torch.optim.SGD(tuned.model.parameters(), lr=1.0), parameters, "SGD is no Adam"),
        (torch.optim.AdamW(tuned.model.parameters()), parameters, "has not stepped it"),
        (tuned.optimizer, [p for p in parameters if "lora" not in p[0]], "none of the parameters"),
        (tuned.optimizer, parameters + parameters, "a second adapter"),
    ]
    ams = fine_tune(tmp_path / "ams", amsgrad=True)
    refused.append((ams.optimizer, list(ams.model.named_parameters()), "amsgrad or maximize"))
    uneven = fine_tune(tmp_path / "uneven")
    next(iter(uneven.optimizer.state.values()))["step"] += 1
    refused.append((uneven.optimizer, list(uneven.model.named_parameters()), "2 kinds of step count"))
    for optimizer, named, message in refused:
        with pytest.raises(UserError, match=message):
            save_optimizer_state(optimizer, named, path)
    assert not path.exists()
