"""Sentence embeddings from token features, as all-MiniLM-L6-v2 defines them, and a few sentences."""

import numpy as np

SENTENCES = [
    "A man is eating food.",
    "A man is eating a meal.",
    "A woman is playing the violin.",
    "Someone plays a string instrument.",
    "The girl is carrying a baby.",
    "A cheetah is running behind its prey.",
    "Stock markets fell sharply after the announcement.",
    "Shares dropped when the news was published.",
]


def embed(features: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Average the features (batch, sequence, 384) over real tokens, scale to length one."""
    weights = mask[:, :, None].astype(features.dtype)
    mean = (features * weights).sum(1) / weights.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
