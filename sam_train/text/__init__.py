"""Words as prompts (paper, sections 7.5 and D.5): an embedding of length one becomes one more sparse token of the prompt.

Two ways to train on them. With CLIP, no set needs words: a mask's prompt is the embedding of its picture, which lies where that
of its words would (`CropEmbedder`). With any text encoder, sets whose masks have names or captions are trained on the words
themselves (`NameEmbedder`). Either way a mask's embeddings are computed once and kept beside its shard (`TextEmbeddingStore`).
"""

from sam_train.text.clip import ClipEncoder
from sam_train.text.compatibility import check_text_encoder
from sam_train.text.embedders import CropEmbedder, NameEmbedder, TextEmbeddings, TextPromptEmbedder
from sam_train.text.embedding_store import TextEmbeddingStore
from sam_train.text.encoder import TextEncoder
from sam_train.text.sentence import SentenceEncoder

__all__ = [
    "ClipEncoder",
    "CropEmbedder",
    "NameEmbedder",
    "SentenceEncoder",
    "TextEmbeddingStore",
    "TextEmbeddings",
    "TextEncoder",
    "TextPromptEmbedder",
    "check_text_encoder",
]
