"""Retrieval for a language model, embedded: no server, one folder.

    python examples/rag.py FOLDER

Documents go in with their embeddings; a question finds the passages that a prompt is made of, near
to it and unlike each other, so that none of them says the same again. The embeddings of the sample
stand in for a model: replace `embed` with yours.
"""

from __future__ import annotations

import sys

import numpy as np
import sample
from numpy.typing import NDArray

import vecdb

PROMPT = "Answer with the help of these passages only.\n\n{passages}\n\nQuestion: {question}\n"


def embed(question: str) -> NDArray[np.float32]:
    """The embedding of a question; here looked up among the sample's queries."""
    queries = sample.queries()
    vector: NDArray[np.float32] = queries.vectors[queries.texts.index(question)]
    return vector


def main(folder: str) -> None:
    passages = sample.rows()
    question = next(text for text in sample.queries().texts if text.startswith("electron micro"))
    with vecdb.open(folder) as db:
        docs = db.create_collection("passages", dimension=384, metric="cosine", exist_ok=True)
        docs.upsert(
            passages.ids,
            passages.vectors,
            metadata=passages.metadata,
            documents=passages.texts,
        )
        found = docs.query(
            embed(question),
            k=4,
            filter={"pos": "noun"},
            mmr_lambda=0.7,
            include=("document", "metadata"),
        )
        lines = [f"[{hit.id}] {hit.document}" for hit in found.hits()]
    print(PROMPT.format(passages="\n".join(lines), question=question))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/rag.py FOLDER")
    main(sys.argv[1])
