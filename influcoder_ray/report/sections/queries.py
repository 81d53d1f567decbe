"""Each query beside its examples, and the examples of the whole query set."""

from influcoder_ray.report.blocks import Block, Columns, Prose, QueryCards, Ranking, Section
from influcoder_ray.report.contents import QueryPage, ReportContents
from influcoder_ray.report.wording import count, percentile, plural


def section(contents: ReportContents) -> Section:
    title = "Each query beside its examples"
    if not contents.queries:
        return Section("queries", "Queries", title, (Prose("This report shows no queries.", muted=True),))
    shown = list(contents.attributions())
    negative = "; a bar from the right is a negative one" if any(it.score < 0 for it in shown) else ""
    blocks: list[Block] = [
        Prose(
            "The examples of the corpus with the most influence towards each query. A full bar is a cosine "
            f"of 1{negative}. Open a row to read the example."
        )
    ]
    if note := order_note(contents):
        blocks.append(Prose(note))
    standing = tuple(map(query_familiarity, contents.queries))
    blocks.append(QueryCards(contents.queries, standing))
    return Section("queries", "Queries", title, tuple(blocks))


def whole_set(contents: ReportContents) -> Section:
    most = Ranking("Most influential", "What teaches this behaviour most.", contents.group, "most")
    meaning = "What points away from it, or has nothing to do with it."
    least = Ranking("Least influential", meaning, contents.least, "least")
    return Section(
        "whole-set",
        "Whole query set",
        "The whole query set",
        (
            Prose(
                "Here the score is the mean cosine over all queries: what the corpus contributes to the "
                "behaviour as a whole."
            ),
            Columns(((most,), (least,))),
        ),
    )


def query_familiarity(query: QueryPage) -> str:
    """How familiar a query and the examples kept for it are, in a sentence; empty where not known."""
    it = query.familiarity
    if it is None:
        return ""
    mark = ", unfamiliar to the encoder" if it.unfamiliar else ""
    return (
        f"Familiarity {percentile(it.familiarity)}%{mark}; of the {count(it.answers)} examples kept for it "
        f"{count(it.unfamiliar_answers)} {'is' if it.unfamiliar_answers == 1 else 'are'} unfamiliar."
    )


def order_note(contents: ReportContents) -> str:
    """By what the queries' examples are ordered, where that is not the encoder."""
    done = contents.reranked
    if done is None:
        return ""
    near = f"the {count(done.text_candidates)} examples with the most similar text"
    best = f"the encoder's {count(done.candidates)} best"
    taken = " and ".join(
        part for part, wanted in ((best, done.candidates), (near, done.text_candidates)) if wanted
    )
    return (
        f"The gradients of {taken} of each query were taken, and every "
        "query ranks them all by exact influence: the score is the cosine of two gradients, and beside it "
        "stands the place that the encoder gave, if it kept the example for that query. "
        f"They are {plural(done.contents, 'different example', 'different examples')}, for which "
        f"{plural(done.gradient_evaluations, 'gradient was', 'gradients were')} computed; the others' were "
        "in the sample. An example without a score has no gradient, or was not among those: it stands behind."
    )
