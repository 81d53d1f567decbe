"""What the causal LM itself answers: the behaviour to explain where nobody has written it down."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.tokens import prompt_tokens
from influcoder_ray.gradients.adapter import AdapterWeights
from influcoder_ray.gradients.teacher import Teacher


def generate(teacher: Teacher, question: Example, *, most_tokens: int) -> str:
    """The model's own answer to an example's prompt; its response is not looked at.

    Greedy: at each step the likeliest token, so that it is the same every time. A trained adapter has its
    part in it. The prompt is put before the model as gradients see it, and loses its head where the window
    has no room for it and `most_tokens` more.

    Raises:
        UserError: the window has no room for the answer, the chat template refuses the prompt, or the model
            answers with nothing.
    """
    room = teacher.spec.max_tokens - most_tokens
    if most_tokens < 1 or room < 1:
        raise UserError(
            f"an answer of {most_tokens} tokens leaves no prompt in model.max_tokens of "
            f"{teacher.spec.max_tokens}; ask for a shorter one, or give a response"
        )
    tokens = prompt_tokens(question, teacher.tokenizer, max_tokens=room, template=teacher.template)
    if tokens.fault or not tokens.ids:
        reason = tokens.fault or "it comes to no token"
        raise UserError(f"query: cannot be put before the model: {reason}; give another, or a response")
    ids = torch.tensor([tokens.ids], device=teacher.device)
    model: Any = teacher.model
    with torch.inference_mode(), _adapted(teacher.model, teacher.weights):
        whole = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most_tokens,
            do_sample=False,
            num_beams=1,
            # Folders come with these for sampling; beside greedy search each would be warned of.
            temperature=None,
            top_p=None,
            top_k=None,
            # And with this, which greedy search heeds too: what was said already is no longer the likeliest.
            repetition_penalty=1.0,
            pad_token_id=teacher.tokenizer.pad_token_id or 0,
        )
    answer = str(teacher.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)).strip()
    if not answer:
        raise UserError("query: the model answers it with nothing; give the response that is to be explained")
    return answer


@contextmanager
def _adapted(model: nn.Module, weights: Sequence[AdapterWeights]) -> Iterator[None]:
    """While it lasts, a trained adapter's own term is added wherever it is at home."""

    def hook(w: AdapterWeights, b: Tensor) -> Any:
        return lambda _module, inputs, output: output + w.target.scaling * (inputs[0] @ w.a.T @ b.T)

    handles = [
        model.get_submodule(w.target.name).register_forward_hook(hook(w, w.b))
        for w in weights
        if w.b is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
