"""The rows that a model is looked at with: of settings, of a file with the usual columns, or built in."""

from collections.abc import Sequence

from influcoder_ray.errors import UserError
from influcoder_ray.examples import ColumnSpec, Example
from influcoder_ray.examples.columns import examples_from_cells
from influcoder_ray.tables.cells import cells_in_parts
from influcoder_ray.tables.datafiles import DataFile, require_columns

_PROMPTS = ("prompt", "instruction", "question")
# What some sets give an instruction to work on.
_CONTEXTS = ("context", "input")
_RESPONSES = ("response", "answer", "output", "completion")

# Short and unlike each other: questions and plain text, prose and code, words and numbers.
BUILT_IN = tuple(
    Example(f"built-in:{row}", prompt, response, f"built-in:{row}")
    for row, (prompt, response) in enumerate(
        (
            ("What is seven times eight?", "Seven times eight is 56."),
            ("Name the capital of Japan.", "The capital of Japan is Tokyo."),
            ("Translate into French: the cat sleeps.", "Le chat dort."),
            (
                "Write a Python function that doubles a number.",
                "def double(number):\n    return 2 * number",
            ),
            (
                "Can you tell me how to pick the lock of my neighbour's door?",
                "I cannot help with opening a door that is not yours.",
            ),
            ("Is a whale a fish? Explain.", "No: it breathes air and feeds its young with milk."),
            (
                "Sort these words: pear, apple, fig.",
                "apple, fig, pear",
            ),
            (
                "A train leaves at 9:40 and arrives at 11:05. How long does it take?",
                "One hour and 25 minutes.",
            ),
            ("", "Bread is made of flour, water, salt and yeast. It rises for an hour before it is baked."),
            ("", "SELECT name, COUNT(*) FROM visits WHERE year = 2019 GROUP BY name ORDER BY 2 DESC;"),
            ("", "The treaty was signed in the spring, and by autumn both sides had broken it."),
            ("", "3.14159 26535 89793 23846 26433 83279 50288 41971"),
        )
    )
)


def first_examples(
    files: Sequence[DataFile], columns: ColumnSpec | None, count: int, *, setting: str
) -> list[Example]:
    """The first usable rows of data files.

    Args:
        columns: what the columns hold; None to go by the usual names.
        setting: the setting that says where they lie, for the error's first words.

    Raises:
        UserError: a column is missing, or no row can be used.
    """
    examples: list[Example] = []
    for file in files:
        spec = columns or usual_columns(file, setting=setting)
        require_columns([file], spec.names, setting=setting)
        for _, cells in cells_in_parts(file, spec.names):
            examples += examples_from_cells(cells, spec, relative=file.relative)[0]
            if len(examples) >= count:
                return examples[:count]
    if not examples:
        more = f" and {len(files) - 1} more hold" if len(files) > 1 else " holds"
        conditions = " and meets the conditions" if any(file.where for file in files) else ""
        raise UserError(
            f"{setting}: {files[0].place}{more} no row that can be used{conditions}; give rows with text"
        )
    return examples


def usual_columns(file: DataFile, *, setting: str) -> ColumnSpec:
    """What a file's columns hold, told by their names.

    Raises:
        UserError: none of them has a usual name.
    """

    def found(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in file.columns), None)

    prompt, response = found(_PROMPTS), found(_RESPONSES)
    if "messages" in file.columns:
        return ColumnSpec(messages="messages")
    if prompt and response:
        context = found(_CONTEXTS)
        return ColumnSpec(prompt=(prompt, context) if context else prompt, response=response)
    if "text" in file.columns:
        return ColumnSpec(text="text")
    raise UserError(
        f"{setting}: {file.place} has none of the usual columns (messages; prompt and response; text); it "
        f"has {', '.join(file.columns)}; name them in a settings file and use --config"
    )
