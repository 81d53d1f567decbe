"""The model's own answer is the one that a greedy loop over its logits gives."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import CHAT_TEMPLATE, build_causal_lm
from transformers import AutoModelForCausalLM

from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.tokens import loss_tokens
from influcoder_ray.gradients.generation import generate
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher

CPU = torch.device("cpu")
ASKED = Example("q", "Which bread is this?", "", "")


def greedy(model: torch.nn.Module, teacher: Teacher, tokens: int) -> str:
    """One likeliest token after the other, the whole text anew for each."""
    answered = Example("q", ASKED.prompt, "x", "")
    (whole,) = loss_tokens([answered], teacher.tokenizer, max_tokens=512, template=teacher.template)
    ids = list(whole.ids[: whole.labelled_from])
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == teacher.tokenizer.eos_token_id:
            break
    return str(teacher.tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("kind", ["plain", "chat", "trained"])
def test_an_answer_is_the_greedy_one_of_the_model_with_its_adapter(
    kind: str, causal_lm_folder: Path, chat_lm_folder: Path, tmp_path: Path
) -> None:
    """Prevents explaining an answer that the model with its template and adapter would not give."""
    folder = chat_lm_folder if kind == "chat" else causal_lm_folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    bare, spec = model, AdapterSpec(rank=2)
    if kind == "trained":
        torch.manual_seed(5)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(tmp_path)
        bare = AutoModelForCausalLM.from_pretrained(folder)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path).eval()
        spec = AdapterSpec(path=str(tmp_path))
    teacher = Teacher.load(ModelSpec(path=str(folder), max_tokens=256), spec, seed=0, device=CPU)
    assert teacher.template == ("chat" if kind == "chat" else "plain")
    found = generate(teacher, ASKED, most_tokens=12)
    assert found == greedy(model, teacher, 12)
    assert found == generate(teacher, ASKED, most_tokens=12)
    if kind == "trained":
        assert found != greedy(bare, teacher, 12), "the adapter changes nothing, so nothing was proved"


def test_sampling_settings_that_a_folder_brings_do_not_change_the_answer(tmp_path: Path) -> None:
    """Prevents a folder's temperature, beams or penalty from making another answer, or a warning."""
    folder = build_causal_lm(tmp_path / "lm", chat_template=CHAT_TEMPLATE)
    spec = ModelSpec(path=str(folder), max_tokens=256)
    plain = Teacher.load(spec, AdapterSpec(rank=2), seed=0, device=CPU)
    expected = generate(plain, ASKED, most_tokens=12)
    sampling = tmp_path / "sampling"
    shutil.copytree(folder, sampling)
    (sampling / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 1.7, "top_p": 0.9, "top_k": 50, "num_beams": 3, '
        '"repetition_penalty": 5.0}'
    )
    teacher = Teacher.load(
        spec.model_copy(update={"path": str(sampling)}), AdapterSpec(rank=2), seed=0, device=CPU
    )
    assert generate(teacher, ASKED, most_tokens=12) == expected


def test_an_answer_that_the_window_has_no_room_for_is_refused(causal_lm_folder: Path) -> None:
    """Prevents a prompt that is cut to nothing, whose answer would explain nothing."""
    spec = ModelSpec(path=str(causal_lm_folder), max_tokens=16)
    teacher = Teacher.load(spec, AdapterSpec(rank=2), seed=0, device=CPU)
    with pytest.raises(UserError, match=r"model\.max_tokens of 16"):
        generate(teacher, ASKED, most_tokens=16)
    assert generate(teacher, ASKED, most_tokens=8)
