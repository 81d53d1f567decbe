"""What the numbers mean in plain words, and how far to trust them."""

import math
from collections.abc import Mapping
from typing import Any

from influcoder_ray.report.blocks import Bullets, Findings, Heading, Note, Prose, Section, Terms
from influcoder_ray.report.contents import ReportContents, measured, number
from influcoder_ray.report.contents import section as part
from influcoder_ray.report.sections.methods import METHODS, sample_size
from influcoder_ray.report.texts import one_line
from influcoder_ray.report.warnings import warnings_for
from influcoder_ray.report.wording import count, decimal, percent, plural

_WHY = (
    "Nobody can compute the influence of every training example exactly: it takes a gradient of the language "
    "model for each. So exact influence is computed on a sample, a small encoder learns to reproduce it, and "
    "the encoder ranks the whole corpus. The question is how well its ranking follows the exact one."
)
_LIMIT = (
    "Influence is a first-order estimate at the model's present weights. It says which examples pull the "
    "model in the same direction; that the model would answer differently without them is only shown by "
    "training it without them."
)


def section(contents: ReportContents) -> Section:
    return Section(
        "trust",
        "Trust",
        "What the numbers mean, and how far to trust them",
        (
            Prose(_WHY),
            Bullets(tuple(readings(contents))),
            Heading("The words"),
            Terms(terms()),
            Heading("What was checked"),
            Findings("What was checked", checks(contents)),
            Note(_LIMIT),
        ),
    )


def pairs_in_order(rho: float) -> float:
    """The share of pairs that a ranking puts as the true one does, 0 to 1, out of Spearman's rho in [-1, 1].

    Exact where both are jointly normal: rho = 6/pi asin(r/2), and a pair agrees with probability
    1/2 + asin(r)/pi (Kruskal, 1958, https://doi.org/10.1080/01621459.1958.10501481). Elsewhere an estimate.
    """
    correlation = 2 * math.sin(math.pi * min(max(rho, -1.0), 1.0) / 6)
    return 0.5 + math.asin(min(max(correlation, -1.0), 1.0)) / math.pi


def readings(contents: ReportContents) -> list[str]:
    """What this run's own figures come to, a sentence each; fewer where fewer were measured."""
    found = [*_order(contents.evaluation), *_top(contents.evaluation)]
    if warnings_for(contents):
        found.append("The points at the top of this page limit what can be believed of these rankings.")
    else:
        found.append("None of the checks below speaks against these rankings.")
    return found


def _order(evaluation: Mapping[str, Any]) -> list[str]:
    encoder = measured(evaluation, "encoder", "per_query_rho")
    if encoder is None:
        return []
    rivals = []
    for key in ("untrained_encoder", "tfidf", "bm25"):
        theirs = measured(evaluation, key, "per_query_rho")
        if theirs:
            rivals.append(f"{_spoken_method(key)} {_of_hundred(theirs.mean)}")
    beside = f" Others on the same pairs: {', '.join(rivals)}." if rivals else ""
    return [
        "Take a query and any two examples: of 100 such pairs the encoder puts about "
        f"{_of_hundred(encoder.mean)} in the order of exact influence. Guessing gives 50, a perfect copy "
        f"100.{beside} (Estimated from the rank agreement.)"
    ]


def _top(evaluation: Mapping[str, Any]) -> list[str]:
    recall = measured(evaluation, "encoder", "recall_at_10")
    pool = number(evaluation.get("pool"))
    # Of no more than ten examples any order has all of them among its first ten.
    if recall is None or (pool is not None and pool <= 10):
        return []
    return [
        "Of the ten examples of the test pool that truly influence a query most, "
        f"{decimal(10 * recall.mean, 1)} on average are among the encoder's first ten. "
        "What it misses stands further down."
    ]


def _spoken_method(key: str) -> str:
    name = METHODS[key]
    return name if name.isupper() or "-" in name else name[0].lower() + name[1:].replace(",", "")


def _of_hundred(rho: float) -> str:
    return count(100 * pairs_in_order(rho))


def terms() -> tuple[tuple[str, str], ...]:
    """The words of the page with their meanings."""
    return (
        (
            "Rank agreement",
            "Spearman's rho between the encoder's "
            "cosines and exact gradient influence, on queries and pool examples never seen in training. 1 is "
            f"the same order, 0 is no relation, {decimal(-1, 0)} is the order reversed.",
        ),
        (
            "Per query, and aggregated",
            "Per query: rho over the pool for each query, then the mean over queries. Aggregated: one rho, "
            "over the pool's mean influence on all queries together.",
        ),
        (
            "Score",
            f"A cosine in [{decimal(-1, 0)}, 1]. Higher means more influence towards the query: training on "
            "the example moves the model towards that response. A negative score points away from it.",
        ),
        (
            "Percentile",
            "The share of the corpus that ranks below the example. Scores of different queries have "
            "different scales; percentiles can be compared.",
        ),
        (
            "Familiarity",
            "How near a text lies to what the encoder was trained on: the share, in per cent, of held-out "
            "texts of the sample that lie as far out or farther. What is unfamiliar is outside of what the "
            "rank agreement was measured on.",
        ),
        (
            "Marked words",
            "Where it was computed which parts of an example carry its influence, they are shaded; elsewhere "
            "words are marked that the query holds too and few other examples do. Those only show what two "
            "texts have in common: the encoder does not count words.",
        ),
    )


def checks(contents: ReportContents) -> tuple[tuple[str, str], ...]:
    """What the quality figures rest on: a name and a finding each."""
    return (
        ("Measured on", f"{sample_size(contents.evaluation)}."),
        ("Splits by content", _splits(part(contents.evaluation, "split_audit"))),
        ("Sketches against gradients", _sketches(part(contents.evaluation, "sketch_fidelity"))),
        ("Far from what was trained on", _unfamiliar(contents)),
        ("Agreement by familiarity", _by_familiarity(contents.evaluation)),
        *_by_dimensions(contents.evaluation),
        ("Cut to fit a window", _windows(contents)),
    )


def _splits(audit: Mapping[str, Any]) -> str:
    if not audit:
        return "Not audited."
    apart = audit.get("disjoint") is True and not number(audit.get("shared_contents"))
    sizes = [f"{one_line(str(name), 40)} {count(size)}" for name, size in part(audit, "sizes").items()]
    findings = ["No content is in two splits." if apart else "Some content is in more than one split."]
    if near := part(audit, "near_duplicates"):
        amounts = [f"{one_line(str(name), 40)} {count(amount)}" for name, amount in near.items()]
        findings.append(
            "Test examples that equal a training example but for case, punctuation and numbers: "
            f"{', '.join(amounts)}."
        )
    if sizes:
        findings.append(f"Sizes: {', '.join(sizes)}.")
    return " ".join(findings)


def _sketches(fidelity: Mapping[str, Any]) -> str:
    if not fidelity:
        return "Not measured."
    return (
        f"Rho {decimal(fidelity.get('rho'))}, mean absolute error of the cosine "
        f"{decimal(fidelity.get('mean_absolute_error'), 4)}, over "
        f"{plural(fidelity.get('pairs'), 'pair', 'pairs')} of "
        f"{plural(fidelity.get('examples'), 'example', 'examples')}; "
        f"{count(fidelity.get('width'))} numbers a sketch."
    )


def _unfamiliar(contents: ReportContents) -> str:
    it = contents.unfamiliar
    shares = (
        (it.rows, contents.corpus_rows, "of the corpus's rows"),
        (it.queries, it.all_queries, "of the queries"),
        (it.answers, it.all_answers, "of all examples kept for them"),
    )
    found = [f"{percent(some / of if of else None)} {name} ({count(some)})" for some, of, name in shares]
    return f"Unfamiliar, below {percent(it.below / 100)}: {', '.join(found[:-1])} and {found[-1]}."


def _by_familiarity(evaluation: Mapping[str, Any]) -> str:
    bins = evaluation.get("agreement_by_familiarity")
    if not isinstance(bins, list) or not bins:
        return "Not measured."
    found = []
    for row in bins:
        figures = row if isinstance(row, Mapping) else {}
        rho = part(figures, "per_query_rho")
        found.append(
            f"{decimal(rho.get('mean'))} ± {decimal(rho.get('std'))} at familiarity "
            f"{count(figures.get('from'))} to {count(figures.get('to'))}"
        )
    return f"Rank agreement per query among test pool examples that are alike in it: {', '.join(found)}."


def _by_dimensions(evaluation: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What shorter vectors would cost, or do; nothing where vectors have no foremost numbers."""
    rows = evaluation.get("agreement_by_dimensions")
    found = []
    for row in rows if isinstance(rows, list) else []:
        figures = row if isinstance(row, Mapping) else {}
        recalls = [
            f"{name.removeprefix('recall_at_')} {decimal(part(figures, name).get('mean'))}"
            for name in figures
            if name.startswith("recall_at_")
        ]
        finding = f"{count(figures.get('dimensions'))}: rank agreement per query "
        finding += decimal(part(figures, "per_query_rho").get("mean"))
        found.append(finding + "".join(f", recall@{recall}" for recall in recalls))
    return (("By the foremost dimensions alone", f"{'; '.join(found)}."),) if found else ()


def _windows(contents: ReportContents) -> str:
    found = [
        f"{one_line(row.who, 40).capitalize()}: {percent(row.share)} of the examples, "
        f"at {count(row.max_tokens)} tokens."
        for row in contents.truncation
    ]
    return " ".join(found) or "Not recorded."
