"""What stands above the sections: what was run, and the three numbers that a reader takes away."""

from influcoder_ray.report.blocks import Headline
from influcoder_ray.report.contents import ReportContents, measured
from influcoder_ray.report.texts import one_line
from influcoder_ray.report.wording import count, decimal, duration, percent, plural


def summary(contents: ReportContents) -> str:
    """What was run, in a line below the title."""
    seconds = sum(row.seconds for row in contents.stages)
    took = f", in {duration(seconds)} of computing" if seconds else ""
    return (
        f"{plural(contents.corpus_rows, 'row', 'rows')} of the corpus, "
        f"{plural(len(contents.queries), 'query', 'queries')} shown{took}."
    )


def headline(contents: ReportContents) -> tuple[Headline, ...]:
    """The three numbers that a reader takes away."""

    def mean(method: str, figure: str) -> str:
        found = measured(contents.evaluation, method, figure)
        return decimal(found.mean if found else None, 2)

    worst = contents.worst_quarantine()
    of_stage = f" of the rows that the stage {one_line(worst.stage, 40)} read" if worst.stage else ""
    lost_most = ", which lost most" if worst.stage and worst.rows else ""
    return (
        Headline(
            "rank agreement with exact influence, per query",
            mean("encoder", "per_query_rho"),
            f"Before training it was {mean('untrained_encoder', 'per_query_rho')}. 1 would be the exact "
            f"order. Aggregated over queries: {mean('encoder', 'aggregated_rho')}, "
            f"before training {mean('untrained_encoder', 'aggregated_rho')}.",
        ),
        Headline(
            "rows of the corpus attributed",
            count(contents.corpus_rows),
            "Each has a score for each query, and its place among all the others.",
        ),
        Headline(
            "of rows not usable",
            percent(worst.share),
            f"The share{of_stage}{lost_most}. Over the whole run "
            f"{plural(contents.rows_quarantined, 'row was', 'rows were')} set aside.",
        ),
    )
