"""Text prompts (paper, sections 7.5 and D.5): a text embedding of unit norm becomes one more sparse token of the prompt.

There are two ways to train on them. `CropEmbedder` needs no text in the shards: the text prompt of a mask is the CLIP image
embedding of its object, which lies close to the embedding of a text that describes the object. `NameEmbedder` works with any
text encoder: the text prompt of a mask is the embedding of its name, a category or a caption. In both cases the embeddings
are computed once and stored beside the shard (`TextEmbeddingStore`).
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
