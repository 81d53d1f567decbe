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
from influcoder_ray.encoder.head import SIDES
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.recipes import training as training_of
from influcoder_ray.encoder.ridge import Sums, solve
from influcoder_ray.encoder.specs import DistillSpec, EncoderSpec, Recipe
from influcoder_ray.encoder.spectral import SpectralTraining
from influcoder_ray.encoder.training import Examples, Training
from influcoder_ray.encoder.workers import Workers
from influcoder_ray.examples import Example

CPU = torch.device("cpu")
RECIPES: tuple[Recipe, ...] = ("influcoder", "spectral")
# Of a block's gradients. Sums of features are added up in another order by two workers than by one.
TOLERANCES = {"influcoder": 1e-6, "spectral": 1e-4}
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


def side(encoder: Encoder, rows: int, seed: int, workers: Workers) -> Examples:
    """The rows of a problem that a worker owns."""
    examples, sketches = problem(rows, seed)
    mine = slice(workers.rank, None, workers.size)
    return Examples(encoder.windows(examples[mine])[0], sketches[mine], rows)


def distillation(
    folder: Path, recipe: Recipe = "influcoder", rows: tuple[int, int] = (6, 10), **spec: Any
) -> Training:
    encoder, workers = encoder_of(folder), Workers()
    queries, pool = (side(encoder, n, seed, workers) for seed, n in enumerate(rows))
    settings = {
        "recipe": recipe,
        "epochs": 4,
        "queries_per_step": 3,
        "candidates_per_step": 4,
        "learning_rate": 1e-3,
        "folds": 2,
    } | spec
    return training_of(encoder, queries, pool, DistillSpec(**settings), seed=7, workers=workers)


def parameters(training: Training) -> dict[str, torch.Tensor]:
    found = {name: p.detach().clone() for name, p in training.encoder.model.named_parameters()}
    head = training.encoder.head
    return found | ({f"head.{k}": v.clone() for k, v in head.state_dict().items()} if head else {})


def gradients_of_blocks(folder: Path, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The loss and every parameter's gradient of each of `BLOCKS`, then the parameters after an epoch.

    Of the spectral recipe, whose first epoch takes no steps, after that one.
    """
    training = distillation(folder, recipe, listwise_share=0.5, temperature=0.5, learning_rate=1e-4)
    found = {}
    if recipe == "spectral":
        training.train_epoch()
        found["fitted"] = predictions(training)
    for number, block in enumerate(BLOCKS):
        training.encoder.model.zero_grad()
        found[f"{number}.loss"] = torch.tensor([training.backward(block)])
        for name, parameter in training.encoder.model.named_parameters():
            assert parameter.grad is not None
            found[f"{number}.{name}"] = parameter.grad.clone()
    training.train_epoch()
    found["predicted"] = predictions(training)
    model = training.encoder.model.named_parameters()
    return found | {f"after.{name}": p.detach().clone() for name, p in model}


def predictions(training: Training) -> torch.Tensor:
    """The cosines of texts not trained on: the same whichever sign a direction was found with."""
    encoder = training.encoder
    sides = [encoder.embed(problem(8, 200 + i)[0], side)[0] for i, side in enumerate(SIDES)]
    return torch.from_numpy(sides[0] @ sides[1].T)


def one_of_two_workers(rank: int, folder: Path, recipe: Recipe, meeting: Path) -> dict[str, torch.Tensor]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(minutes=3)
    )
    try:
        return gradients_of_blocks(folder, recipe)
    finally:
        distributed.destroy_process_group()


def second_worker(_: int, folder: Path, recipe: Recipe, meeting: Path, out: Path) -> None:
    torch.set_num_threads(1)
    save_file(one_of_two_workers(1, folder, recipe, meeting), out)


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_worker_and_two_take_the_same_step(
    recipe: Recipe, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a result that changes when a machine joins or leaves the training."""
    alone = gradients_of_blocks(encoder_folder, recipe)
    # Both ends are on this machine: its name needs no looking up.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    meeting, out = tmp_path / "meeting", tmp_path / "second.safetensors"
    other = spawn(second_worker, (encoder_folder, recipe, meeting, out), nprocs=1, join=False)
    first = one_of_two_workers(0, encoder_folder, recipe, meeting)
    while not other.join():
        pass
    second = load_file(out)
    assert alone.keys() == first.keys() == second.keys()
    for name in alone:
        assert torch.equal(first[name], second[name]), f"the workers drifted apart in {name}"
    for part in range(len(BLOCKS)):
        names = [name for name in alone if name.startswith(f"{part}.")]
        found, expected = (torch.cat([x[name].flatten() for name in names]) for x in (first, alone))
        assert (found - expected).norm() <= TOLERANCES[recipe] * expected.norm()
    for name in {"fitted", "predicted"} & alone.keys():
        torch.testing.assert_close(first[name], alone[name], rtol=0, atol=1e-4)
    # AdamW's first steps turn the sign of a tiny gradient into a whole step: closeness in the mean.
    moved = torch.cat([(first[n] - alone[n]).flatten() for n in alone if n.startswith("after.")])
    assert moved.abs().mean() < 1e-5


def test_a_block_gives_the_gradient_of_its_loss(encoder_folder: Path) -> None:
    """Prevents vectors and sketches from being paired with other rows than their own."""
    training = distillation(encoder_folder, listwise_share=0.0)
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


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_taken_up_in_the_middle_ends_with_the_same_bits(
    recipe: Recipe, encoder_folder: Path, tmp_path: Path
) -> None:
    """Prevents a restart from changing the result: lost moments or heads, a schedule that begins anew."""
    whole = distillation(encoder_folder, recipe)
    losses = [whole.train_epoch() for _ in range(4)]
    before = distillation(encoder_folder, recipe)
    assert [before.train_epoch(), before.train_epoch()] == losses[:2]
    before.save(tmp_path)
    torch.manual_seed(99)
    after = distillation(encoder_folder, recipe)
    after.restore(tmp_path)
    assert after.next_epoch == 3
    assert [after.train_epoch(), after.train_epoch()] == losses[2:]
    expected = parameters(whole)
    found = parameters(after)
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_state_taken_up_and_saved_again_is_the_same_state(
    recipe: Recipe, encoder_folder: Path, tmp_path: Path
) -> None:
    """Prevents a second restart from differing from the first."""
    training = distillation(encoder_folder, recipe)
    training.train_epoch()
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    training.save(folders[0])
    again = distillation(encoder_folder, recipe)
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
        before = epoch * training.steps_per_epoch
        assert seen == list(range(before + 1, before + training.steps_per_epoch + 1))
    # What is reported after a step is the rate of the next one.
    rates = [1e-3 / max(1, round(steps / 4)), *rates]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(1e-3)
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert np.all(np.diff(rates[peak:]) <= 0)
    assert min(rates[:-1]) > 0
    assert rates[-1] == 0


@pytest.mark.parametrize(
    ("recipe", "listwise_share"), [("influcoder", 0.0), ("influcoder", 0.5), ("spectral", 0.0)]
)
def test_a_few_epochs_beat_the_untrained_encoder_on_texts_not_seen(
    recipe: Recipe, listwise_share: float, tmp_path: Path
) -> None:
    """Prevents a loop that runs, reports falling losses and teaches nothing."""
    training = distillation(
        build_encoder(tmp_path),
        recipe,
        rows=(24, 64),
        epochs=6,
        queries_per_step=8,
        candidates_per_step=16,
        learning_rate=3e-3,
        listwise_share=listwise_share,
        temperature=0.2,
    )
    untrained = agreement(training.encoder)
    losses = [loss for loss in (training.train_epoch() for _ in range(6)) if loss is not None]
    trained = agreement(training.encoder)
    assert losses[-1] < losses[0] / (2 if recipe == "influcoder" else 1.1)
    assert trained[0] > untrained[0] + 0.1
    assert trained[1] > untrained[1] + 0.1


def test_the_head_alone_in_closed_form_beats_the_untrained_encoder_on_texts_not_seen(tmp_path: Path) -> None:
    """Prevents a first epoch that leaves the work to the others, or a head that learns by heart."""
    training = distillation(build_encoder(tmp_path), "spectral", rows=(24, 64))
    untrained = agreement(training.encoder)
    assert training.train_epoch() is None
    fitted = agreement(training.encoder)
    assert fitted[0] > untrained[0] + 0.1
    assert fitted[1] > untrained[1] + 0.1


def agreement(encoder: Encoder) -> tuple[float, float]:
    """Rank agreement, per query and aggregated, on texts that no training here has seen."""
    # Here, not above: the second worker reads this file too, and need not wait for scipy.
    from influcoder_ray.evaluation.agreement import aggregated_rho, per_query_rho

    (queries, query_sketches), (pool, pool_sketches) = problem(20, 100), problem(40, 101)
    exact = query_sketches @ pool_sketches.T
    predicted = encoder.embed(queries, "queries")[0] @ encoder.embed(pool, "pool")[0].T
    return float(per_query_rho(predicted, exact).mean()), aggregated_rho(predicted, exact)


def test_a_texts_own_fold_has_no_part_in_its_prediction(encoder_folder: Path) -> None:
    """Prevents the encoder from being trained to please heads that know the step's texts by heart."""
    training = distillation(encoder_folder, "spectral")
    training.train_epoch()
    assert isinstance(training, SpectralTraining)
    folds = training._folds["pool"]
    rows = np.flatnonzero(folds == 0)
    predicted, _ = training._predicted("pool", rows)
    head = training.encoder.head
    assert head is not None
    with torch.no_grad():
        features = head.standardised(training.encoder.features(training._pool.windows))
    exact, rest = training._coordinates["pool"], np.flatnonzero(folds != 0)
    weights, bias = solve(
        Sums.of(features[rest], exact[rest]), float(training.tensors()["penalties"][SIDES.index("pool")])
    )
    expected = features[rows] @ weights.float() + bias.float()
    torch.testing.assert_close(predicted.detach(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_sets_what_the_settings_leave_open(recipe: Recipe) -> None:
    """Prevents the paper's recipe at another learning rate than the paper's, or a rate set in vain."""
    spec = DistillSpec(recipe=recipe)
    assert (spec.epochs, spec.learning_rate) == {"influcoder": (8, 5e-5), "spectral": (4, 3e-5)}[recipe]
    assert DistillSpec(recipe=recipe, learning_rate=1e-3).learning_rate == 1e-3
    assert DistillSpec.model_validate(spec.model_dump(mode="json")) == spec
