"""The distillation loop: the same step for one worker and for two, restarts that leave no trace, learning."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import build_encoder
from torch import distributed
from torch.multiprocessing.spawn import spawn

from influcoder_ray.encoder.blocks import Block
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import DistillSpec, EncoderSpec
from influcoder_ray.encoder.training import Distillation, Side
from influcoder_ray.encoder.workers import Workers
from influcoder_ray.examples import Example

CPU = torch.device("cpu")
TOPICS = (
    "bread flour oven yeast dough",
    "river lake water rain sea",
    "vector matrix slope gradient loss",
    "Paris Tokyo capital France Japan",
)
# One query and one candidate alone, uneven owners, and every row from one of two workers.
BLOCKS = (
    Block(np.array([3, 0, 5]), np.array([7, 2, 4, 1, 9])),
    Block(np.array([1]), np.array([0, 4])),
    Block(np.array([0, 2]), np.array([6, 2, 8])),
)


def problem(rows: int, seed: int) -> tuple[list[Example], np.ndarray]:
    """Texts of one topic's words each, and sketches in which topics are related as no words say.

    A topic's sketch lies near that of the next topic: the untrained encoder cannot know it.
    """
    generator = np.random.default_rng(seed)
    topics = generator.integers(0, len(TOPICS), rows)
    examples = [
        Example(f"{seed}/{i}", "", " ".join(generator.choice(TOPICS[topic].split(), 6)), f"f:{i}")
        for i, topic in enumerate(topics)
    ]
    angles = np.array([0.0, 0.3, 1.2, 2.4])[topics] + generator.normal(0, 0.05, rows)
    sketches = np.stack([np.cos(angles), np.sin(angles), np.zeros(rows)], 1).astype(np.float32)
    return examples, sketches


def encoder_of(folder: Path) -> Encoder:
    return Encoder.load(EncoderSpec(path=str(folder), max_tokens=48, tokens_per_batch=200), CPU)


def side(encoder: Encoder, rows: int, seed: int, workers: Workers) -> Side:
    """The rows of a problem that a worker owns."""
    examples, sketches = problem(rows, seed)
    mine = slice(workers.rank, None, workers.size)
    return Side(encoder.windows(examples[mine])[0], sketches[mine], rows)


def distillation(folder: Path, rows: tuple[int, int] = (6, 10), **spec: Any) -> Distillation:
    encoder, workers = encoder_of(folder), Workers()
    queries, pool = (side(encoder, n, seed, workers) for seed, n in enumerate(rows))
    settings = {"epochs": 4, "queries_per_step": 3, "candidates_per_step": 4, "learning_rate": 1e-3} | spec
    return Distillation(encoder, queries, pool, DistillSpec(**settings), seed=7, workers=workers)


def parameters(training: Distillation) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in training.encoder.model.named_parameters()}


def gradients_of_blocks(folder: Path) -> dict[str, torch.Tensor]:
    """The loss and every parameter's gradient of each of `BLOCKS`, then the parameters after an epoch."""
    training = distillation(folder, listwise_share=0.5, temperature=0.5)
    found = {}
    for number, block in enumerate(BLOCKS):
        training.encoder.model.zero_grad()
        found[f"{number}.loss"] = torch.tensor([training.backward(block)])
        for name, parameter in training.encoder.model.named_parameters():
            assert parameter.grad is not None
            found[f"{number}.{name}"] = parameter.grad.clone()
    training.train_epoch()
    return found | {f"after.{name}": p for name, p in parameters(training).items()}


def one_of_two_workers(rank: int, folder: Path, meeting: Path) -> dict[str, torch.Tensor]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(minutes=3)
    )
    try:
        return gradients_of_blocks(folder)
    finally:
        distributed.destroy_process_group()


def second_worker(_: int, folder: Path, meeting: Path, out: Path) -> None:
    torch.set_num_threads(1)
    save_file(one_of_two_workers(1, folder, meeting), out)


def test_one_worker_and_two_take_the_same_step(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a result that changes when a machine joins or leaves the training."""
    alone = gradients_of_blocks(encoder_folder)
    # Both ends are on this machine: its name needs no looking up.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    meeting, out = tmp_path / "meeting", tmp_path / "second.safetensors"
    other = spawn(second_worker, (encoder_folder, meeting, out), nprocs=1, join=False)
    first = one_of_two_workers(0, encoder_folder, meeting)
    while not other.join():
        pass
    second = load_file(out)
    assert alone.keys() == first.keys() == second.keys()
    for name in alone:
        assert torch.equal(first[name], second[name]), f"the workers drifted apart in {name}"
    for part in range(len(BLOCKS)):
        names = [name for name in alone if name.startswith(f"{part}.")]
        found, expected = (torch.cat([x[name].flatten() for name in names]) for x in (first, alone))
        assert (found - expected).norm() <= 1e-6 * expected.norm()
    # AdamW's first steps turn the sign of a tiny gradient into a whole step: closeness in the mean.
    moved = torch.cat([(first[n] - alone[n]).flatten() for n in alone if n.startswith("after.")])
    assert moved.abs().mean() < 1e-5


def test_a_block_gives_the_gradient_of_its_loss(encoder_folder: Path) -> None:
    """Prevents vectors and sketches from being paired with other rows than their own."""
    training = distillation(encoder_folder)
    block = BLOCKS[0]
    loss = training.backward(block)
    found = {n: p.grad.clone() for n, p in training.encoder.model.named_parameters() if p.grad is not None}
    training.encoder.model.zero_grad()
    (query_texts, query_sketches), (pool_texts, pool_sketches) = problem(6, 0), problem(10, 1)

    def alone(examples: Sequence[Example], rows: np.ndarray) -> torch.Tensor:
        windows = [training.encoder.windows([examples[row]])[0] for row in rows]
        return torch.cat([training.encoder.vectors(window) for window in windows])

    predicted = (alone(query_texts, block.queries) @ alone(pool_texts, block.pool).T).flatten()
    target = torch.from_numpy(query_sketches[block.queries] @ pool_sketches[block.pool].T).flatten()
    expected = 1 - torch.corrcoef(torch.stack([predicted, target]))[0, 1]
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    for name, parameter in training.encoder.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_training_taken_up_in_the_middle_ends_with_the_same_bits(
    encoder_folder: Path, tmp_path: Path
) -> None:
    """Prevents a restart from changing the result: lost moments, a schedule that begins anew."""
    whole = distillation(encoder_folder)
    losses = [whole.train_epoch() for _ in range(4)]
    before = distillation(encoder_folder)
    assert [before.train_epoch(), before.train_epoch()] == losses[:2]
    before.save(tmp_path)
    torch.manual_seed(99)
    after = distillation(encoder_folder)
    after.restore(tmp_path)
    assert after.next_epoch == 3
    assert [after.train_epoch(), after.train_epoch()] == losses[2:]
    expected = parameters(whole)
    for name, parameter in parameters(after).items():
        assert torch.equal(parameter, expected[name]), name


def test_a_state_taken_up_and_saved_again_is_the_same_state(encoder_folder: Path, tmp_path: Path) -> None:
    """Prevents a second restart from differing from the first."""
    training = distillation(encoder_folder)
    training.train_epoch()
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    training.save(folders[0])
    again = distillation(encoder_folder)
    again.restore(folders[0])
    again.save(folders[1])
    for file in ("state.safetensors", "state.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def test_the_learning_rate_rises_then_falls_to_zero(encoder_folder: Path) -> None:
    """Prevents steps that are wasted at rate zero, or a rate that never falls."""
    training = distillation(encoder_folder, warmup_share=0.25)
    rates = []
    steps = 4 * training.steps_per_epoch
    for epoch in range(4):
        seen: list[int] = []

        def report(step: int, loss: float, seen: list[int] = seen) -> None:
            seen.append(step)
            rates.append(training._optimizer.param_groups[0]["lr"])

        training.train_epoch(report)
        assert seen == list(range(1, training.steps_per_epoch + 1)), epoch
    # What is reported after a step is the rate of the next one.
    rates = [1e-3 / max(1, round(steps / 4)), *rates]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(1e-3)
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert np.all(np.diff(rates[peak:]) <= 0)
    assert min(rates[:-1]) > 0
    assert rates[-1] == 0


@pytest.mark.parametrize("listwise_share", [0.0, 0.5])
def test_a_few_epochs_beat_the_untrained_encoder_on_texts_not_seen(
    listwise_share: float, tmp_path: Path
) -> None:
    """Prevents a loop that runs, reports falling losses and teaches nothing."""
    # Here, not above: the second worker reads this file too, and need not wait for scipy.
    from influcoder_ray.evaluation.agreement import aggregated_rho, per_query_rho

    training = distillation(
        build_encoder(tmp_path),
        rows=(24, 64),
        epochs=6,
        queries_per_step=8,
        candidates_per_step=16,
        learning_rate=3e-3,
        listwise_share=listwise_share,
        temperature=0.2,
    )
    (queries, query_sketches), (pool, pool_sketches) = problem(20, 100), problem(40, 101)
    exact = query_sketches @ pool_sketches.T

    def agreement() -> tuple[float, float]:
        encoder = training.encoder
        predicted = encoder.embed(queries)[0] @ encoder.embed(pool)[0].T
        return float(per_query_rho(predicted, exact).mean()), aggregated_rho(predicted, exact)

    untrained = agreement()
    losses = [training.train_epoch() for _ in range(6)]
    trained = agreement()
    assert losses[-1] < losses[0] / 2
    assert trained[0] > untrained[0] + 0.1
    assert trained[1] > untrained[1] + 0.1
