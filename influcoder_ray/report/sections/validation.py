"""What retraining has shown, and what it has not: sentences first, then the losses and scores behind them."""

from influcoder_ray.report.blocks import Block, Bullets, Cell, Heading, Prose, Row, Section, Table
from influcoder_ray.report.validation import LossRow, ScoreRow, Validation


def section(found: Validation) -> Section:
    blocks: list[Block] = [Prose(found.done)]
    for heading, sentences in (("Shown", found.shown), ("Not shown", found.not_shown)):
        if sentences:
            blocks += [Heading(heading), Bullets(sentences)]
    if found.losses:
        blocks.append(_losses(found.losses))
    if found.scores:
        blocks.append(_scores(found.scores))
    return Section("validation", "Retraining", "Proof by retraining", tuple(blocks))


def _losses(rows: tuple[LossRow, ...]) -> Table:
    return Table(
        label="Held-out loss after each fine-tune",
        corner="Trained on",
        columns=("Loss", "Against random", "95% interval over seeds", "Seeds"),
        rows=tuple(
            Row(
                row.trained_on,
                (Cell(row.loss, row.spread), Cell(row.difference), Cell(row.interval), Cell(row.seeds)),
                {True: "better", False: "worse", None: ""}[row.better],
            )
            for row in rows
        ),
        caption="Losses in nats a token on the held-out queries, with their spread over seeds. Lower is "
        "better where examples were selected, and higher where they were taken out: they were then missed.",
        stacked=True,
    )


def _scores(rows: tuple[ScoreRow, ...]) -> Table:
    return Table(
        label="Linear datamodelling score",
        corner="Scores of",
        columns=("Score", "Chance of it without any influence"),
        rows=tuple(Row(row.method, (Cell(row.score, row.spread), Cell(row.p_value))) for row in rows),
        caption="Spearman's rho between what the scores foretell of a random part of the pool and the loss "
        "that training on it gives, averaged over the held-out queries; 1 is perfect, 0 is none.",
    )
