"""The head as a module of sentence-transformers, which its `modules.json` names; nothing here imports this.

    SentenceTransformer(folder, trust_remote_code=True)
loads an encoder with its head where this package is installed: the flag lets it import this class.
`encode_query` gives a query's vectors, `encode` and `encode_document` a pool example's.
"""

from pathlib import Path
from typing import Any, ClassVar

from sentence_transformers.models import Module  # type: ignore[import-not-found]

from influcoder_ray.encoder.features import features
from influcoder_ray.encoder.head import Head


class InfluenceHead(Module):
    """Puts the head behind a Transformer module that gives every layer's states."""

    forward_kwargs: ClassVar[set[str]] = {"task"}

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, read: dict[str, Any], task: str | None = None, **_: Any) -> dict[str, Any]:
        found = features(
            read["all_layer_embeddings"],
            read["input_ids"],
            read["attention_mask"],
            self.head.reading,
        )
        vectors = self.head(found, "queries" if task == "query" else "pool")
        return {**read, "sentence_embedding": vectors}

    def get_sentence_embedding_dimension(self) -> int:
        return self.head.dimensions

    get_embedding_dimension = get_sentence_embedding_dimension

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **_: Any) -> "InfluenceHead":
        return cls(Head.load(Path(model_name_or_path) / subfolder))

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        self.head.save(Path(output_path))
