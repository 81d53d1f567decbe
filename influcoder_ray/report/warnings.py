"""What a reader must know before believing the numbers: contents in, sentences out."""

import math

from influcoder_ray.report.contents import Lead, ReportContents, lead, measured, number, section
from influcoder_ray.report.texts import one_line
from influcoder_ray.report.wording import count, decimal, percent

CLEAR_LEAD_IN_STDS = 2.0
"""A lead below two standard deviations is within what another seed or other queries could give."""

MAX_TRUNCATED_SHARE = 0.10
"""Beyond one example in ten, a ranking speaks of cut texts often enough for a reader to meet them."""

MAX_QUARANTINED_SHARE = 0.01
"""Beyond one row in a hundred, what is missing can hold an example that belongs at the top."""

MIN_SKETCH_RHO = 0.9
"""Two sketches of the same gradients agree at .94 and more; below .9 the truth itself is blurred."""

MAX_UNFAMILIAR_TIMES = 2.0
"""Of texts like the sample's as many are unfamiliar as the limit says; twice that is another kind of text."""

UNFAMILIAR_STDS = 3.0
"""How far beyond chance the share must be too: a handful of queries may well hold twice what is expected."""

MIN_TEST_QUERIES = 30
"""A mean over fewer queries moves by several hundredths when one query is exchanged."""

MIN_TEST_POOL = 50
"""A rank correlation over P examples has a standard error of about 1 / sqrt(P): .14 at 50."""

AGREEMENTS = (("per_query_rho", "per query"), ("aggregated_rho", "aggregated over queries"))

WORD_COUNTS = (("bm25", "BM25"), ("tfidf", "TF-IDF"))
"""The rivals that see nothing but which words two texts share."""


def warnings_for(contents: ReportContents) -> list[str]:
    """The warning sentences that these contents call for, the gravest first; none means none.

    A check that could not be made is a warning too: silence must not read as a pass.
    """
    return [
        *_of_agreement(contents),
        *_of_word_counts(contents),
        *_of_splits(contents),
        *_of_sketch(contents),
        *_of_test_size(contents),
        *_of_familiarity(contents),
        *_of_truncation(contents),
        *_of_quarantine(contents),
    ]


def _of_agreement(contents: ReportContents) -> list[str]:
    if any(row.chosen and row.epoch == 0 for row in contents.epochs):
        return [
            "Training did not help, and the untrained encoder was kept: no epoch agreed better with exact "
            "influence on the validation split. The scores say how alike texts are to that encoder; no "
            "influence was learnt."
        ]
    found = []
    for figure, name in AGREEMENTS:
        encoder = measured(contents.evaluation, "encoder", figure)
        untrained = measured(contents.evaluation, "untrained_encoder", figure)
        ahead = lead(contents.evaluation, "untrained_encoder", figure)
        if encoder is None or untrained is None or ahead is None:
            lacking = "the difference between the two"
            if encoder is None or untrained is None:
                lacking = "the trained encoder" if encoder is None else "the untrained encoder"
            found.append(
                f"Rank agreement ({name}) could not be compared: it is missing or undefined for {lacking}."
            )
            continue
        figures = f"{decimal(encoder.mean)} against {decimal(untrained.mean)}"
        found += _of_lead(ahead, f"rank agreement ({name})", figures)
    return found


def _of_lead(ahead: Lead, name: str, figures: str) -> list[str]:
    """What is to be said of the encoder's lead over the untrained one; nothing of a clear one."""
    if ahead.mean <= 0:
        return [
            f"The encoder is no better than the untrained one in {name}: {figures}. "
            "Do not rely on its rankings."
        ]
    if ahead.std is None:
        return [
            f"It is not known whether the encoder is significantly better than the untrained one in "
            f"{name}: {figures}, with no measured spread."
        ]
    if ahead.mean < CLEAR_LEAD_IN_STDS * ahead.std:
        often = "" if ahead.share_ahead is None else f", ahead in {percent(ahead.share_ahead)} of resamples"
        return [
            f"The encoder is not significantly better than the untrained one in {name}: {figures}, "
            f"a lead of {decimal(ahead.mean)} ± {decimal(ahead.std)} on the same test queries{often}."
        ]
    seeds = ahead.seeds
    if seeds and (seeds.mean <= 0 or seeds.std is None or seeds.mean < CLEAR_LEAD_IN_STDS * seeds.std):
        return [
            f"Another training seed may give an encoder that is no better than the untrained one in {name}: "
            f"over seeds the lead is {decimal(seeds.mean)} ± {decimal(seeds.std)}."
        ]
    return []


def _of_word_counts(contents: ReportContents) -> list[str]:
    found = []
    for rival, name in WORD_COUNTS:
        better = []
        for figure, kind in AGREEMENTS:
            ahead = lead(contents.evaluation, rival, figure)
            encoder = measured(contents.evaluation, "encoder", figure)
            theirs = measured(contents.evaluation, rival, figure)
            if ahead and encoder and theirs and ahead.mean < 0:
                spread = f" (lead {decimal(-ahead.mean)} ± {decimal(ahead.std)})"
                better.append(f"{kind} {decimal(theirs.mean)} against {decimal(encoder.mean)}{spread}")
        if better:
            found.append(
                f"{name}, which only counts the words that two texts share, agrees better with exact "
                f"influence than the encoder does: {', '.join(better)}."
            )
    return found


def _of_splits(contents: ReportContents) -> list[str]:
    audit = section(contents.evaluation, "split_audit")
    shared, disjoint = number(audit.get("shared_contents")), audit.get("disjoint")
    if disjoint is True and not shared:
        return []
    if disjoint is None and shared is None:
        return ["The splits were not audited for shared contents: the rank agreement may be flattering."]
    amount = f"{count(shared)} contents" if shared else "contents"
    return [
        f"The training, validation and test splits share {amount}: "
        "the encoder has seen a part of its test, and the rank agreement is flattering."
    ]


def _of_sketch(contents: ReportContents) -> list[str]:
    rho = number(section(contents.evaluation, "sketch_fidelity").get("rho"))
    if rho is None:
        return ["How faithful the sketches are to the exact gradients was not measured."]
    if rho < MIN_SKETCH_RHO:
        return [
            f"The sketches order pairs differently from the exact gradients (rho {decimal(rho)}, "
            f"below {decimal(MIN_SKETCH_RHO, 1)}): the truth that the encoder learnt from is blurred. "
            "A wider sketch helps."
        ]
    return []


def _of_test_size(contents: ReportContents) -> list[str]:
    found = []
    for key, least, name in (
        ("queries", MIN_TEST_QUERIES, "test queries"),
        ("pool", MIN_TEST_POOL, "test pool examples"),
    ):
        size = number(contents.evaluation.get(key))
        if size is None:
            found.append(f"It is not known on how many {name} the quality figures rest.")
        elif size < least:
            found.append(
                f"The quality figures are rough: they rest on {count(size)} {name}, fewer than {least}."
            )
    return found


def _of_familiarity(contents: ReportContents) -> list[str]:
    it = contents.unfamiliar
    expected = it.below / 100
    kinds = (
        ("the corpus is", it.rows, contents.corpus_rows, it.held_out_pool),
        ("the queries are", it.queries, it.all_queries, it.held_out_queries),
        ("the queries' examples are", it.answers, it.all_answers, it.held_out_pool),
    )
    return [
        f"{percent(part / of)} of {name} unfamiliar to the encoder, where {percent(expected)} would be "
        "expected: far from what it was trained and tested on. There its scores are guesses."
        for name, part, of, held_out in kinds
        if of and held_out and part / of > _unfamiliar_limit(expected, of, held_out)
    ]


def _unfamiliar_limit(expected: float, texts: int, held_out: int) -> float:
    """The share beyond which texts are more often unfamiliar than `held_out` like ones, by which the limit
    was placed, allow for: the binomial spread of both."""
    spread = math.sqrt(expected * (1 - expected) * (1 / texts + 1 / held_out))
    return max(MAX_UNFAMILIAR_TIMES * expected, expected + UNFAMILIAR_STDS * spread)


def _of_truncation(contents: ReportContents) -> list[str]:
    return [
        f"The {one_line(row.who, 40)} saw {percent(row.share)} of the examples cut to "
        f"{count(row.max_tokens)} tokens: what was cut had no part in the scores."
        for row in contents.truncation
        if row.share > MAX_TRUNCATED_SHARE
    ]


def _of_quarantine(contents: ReportContents) -> list[str]:
    worst = contents.worst_quarantine()
    if worst.share <= MAX_QUARANTINED_SHARE:
        return []
    where = f"the stage {one_line(worst.stage, 40)}" if worst.stage else "the run"
    return [
        f"{percent(worst.share)} of the rows that {where} read could not be used "
        f"({count(worst.rows)} rows): they have no score."
    ]
