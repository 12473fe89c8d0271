"""Rank texts by the words that they share with a query: BM25 as Lucene has it.

    score(q, d) = sum over words w of q of idf(w) * tf / (tf + k1 * (1 - b + b * |d| / mean |d|))
    idf(w)      = ln(1 + (N - n + 1/2) / (n + 1/2))

tf: how often w stands in d; n: how many of the N texts have it; |d|: words of d. A word that stands twice in the query counts
twice.
Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009); Kamphuis, de Vries, Boytsov and
Lin, "Which BM25 Do You Mean?" (ECIR 2020), row "Lucene (accurate)".
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

K1 = 1.5
B = 0.75
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores of any script, in lower case."""
    return _WORD.findall(text.lower())


def bm25(query: str, texts: Sequence[str], k1: float = K1, b: float = B) -> np.ndarray:
    """float64 (texts,): the score of each text; it compares the texts of one call, no others."""
    asked = Counter(words(query))
    numbers = {word: n for n, word in enumerate(asked)}
    found = [words(text) for text in texts]
    length_D = np.array([len(text) for text in found], np.float64)
    tf_DQ = np.zeros((len(texts), len(numbers)))
    for d, text in enumerate(found):
        tf_DQ[d] = np.bincount([numbers[word] for word in text if word in numbers], minlength=len(numbers))
    have_Q = (tf_DQ > 0).sum(0)
    idf_Q = np.log1p((len(texts) - have_Q + 0.5) / (have_Q + 0.5))
    norm_D1 = k1 * (1 - b + b * length_D / max(length_D.mean() if len(texts) else 0.0, 1e-9))[:, None]
    share_DQ = np.divide(tf_DQ, tf_DQ + norm_D1, out=np.zeros_like(tf_DQ), where=tf_DQ > 0)
    return share_DQ @ (idf_Q * np.array([*asked.values()], np.float64))
