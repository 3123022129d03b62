"""BLEU and chrF of texts against one reference each, with the counts of sacrebleu, so that resamples cost little.

Both are sums of counts over sentences, put into a formula at the end: the counts of every sentence come from sacrebleu
(public functions), the formulas are here, for many resamples at once, and agree with sacrebleu's on the whole set
(tested). BLEU: up to 4-grams, exponential smoothing, tokenizer 13a, for Japanese references ja-mecab after NFKC, as
JMedBench does (nii-nlp/med-eval@9e03013, evaluate_mt.py); what is compared is the first line that says something. chrF:
characters up to 6-grams, beta 2, whitespace left out.

sacrebleu is an optional dependency: pip install 'medjax[translation]'.
Sources: Papineni et al., ACL 2002, 311-318; Popovic, WMT 2015, 392-395; Post, WMT 2018, 186-191.
"""

import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from medjax.data.qa import is_japanese
from medjax.statistics.bootstrap import Floats, Statistic

_ORDERS = 4
_CHARACTERS = 6
_BETA = 2


def _sacrebleu(metric: str) -> Any:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise ValueError(f"{metric}: sacrebleu is not installed; pip install 'medjax[translation]'") from error
    return BLEU if metric == "bleu" else CHRF


@functools.cache
def _bleu(tokenizer: str) -> Any:
    try:
        return _sacrebleu("bleu")(tokenize=tokenizer)
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"bleu: the tokenizer {tokenizer} needs MeCab and a dictionary; pip install 'medjax[translation]'"
        ) from error


def bleu_statistic(hypotheses: Sequence[str], references: Sequence[str]) -> Statistic:
    """Corpus BLEU, 0 to 100, as a function of weights [resamples, sentences].

    The tokenizer is that of Japanese when at least half of the references hold Japanese.
    Raises ValueError where sacrebleu or its tokenizer is not installed.
    """
    tokenizer = _tokenizer(references)
    counts = np.array([_bleu_counts(h, r, tokenizer) for h, r in zip(hypotheses, references, strict=True)], np.float64)
    return lambda weights: _bleu_of(weights @ counts)


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """BLEU of one sentence, as JMedBench averages it."""
    return float(bleu_statistic([hypothesis], [reference])(np.ones((1, 1)))[0])


def _tokenizer(references: Sequence[str]) -> str:
    return "ja-mecab" if sum(map(is_japanese, references)) * 2 >= max(1, len(references)) else "13a"


def _bleu_counts(hypothesis: str, reference: str, tokenizer: str) -> list[int]:
    """Correct and possible n-grams of each order, then the lengths of both texts."""
    texts = [_first_line(hypothesis), reference]
    if tokenizer == "ja-mecab":
        texts = [unicodedata.normalize("NFKC", text) for text in texts]
    score = _bleu(tokenizer).corpus_score(texts[:1], [texts[1:]])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _bleu_of(counts: Floats) -> Floats:
    """[resamples, 10] sums of counts -> [resamples]; 0 where no word agrees or an order has no n-grams."""
    correct, total, lengths = counts[:, :_ORDERS], counts[:, _ORDERS : 2 * _ORDERS], counts[:, 2 * _ORDERS :]
    with np.errstate(divide="ignore", invalid="ignore"):
        # the k-th order without a hit counts 1 / 2^k of one
        zeros = np.cumsum((correct == 0) & (total > 0), axis=1)
        precisions = np.where(correct > 0, correct, 0.5**zeros) / total
        penalty = np.exp(np.minimum(0, 1 - lengths[:, 1] / lengths[:, 0]))
        score = 100 * penalty * np.exp(np.log(precisions).mean(1))
    return np.where((correct.sum(1) > 0) & (total > 0).all(1), score, 0.0)


def chrf_statistic(hypotheses: Sequence[str], references: Sequence[str]) -> Statistic:
    """Corpus chrF, 0 to 100, as a function of weights [resamples, sentences].

    Raises ValueError where sacrebleu is not installed.
    """
    counts = np.array([_chrf_counts(h, r) for h, r in zip(hypotheses, references, strict=True)], np.float64)
    return lambda weights: _chrf_of(weights @ counts)


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """chrF of one sentence."""
    return float(chrf_statistic([hypothesis], [reference])(np.ones((1, 1)))[0])


def _chrf_counts(hypothesis: str, reference: str) -> list[int]:
    """n-grams of the hypothesis, of the reference, and those that agree, of each order one after the other."""
    _sacrebleu("chrf")
    from sacrebleu.metrics.helpers import extract_all_char_ngrams

    counts = []
    pairs = zip(*(extract_all_char_ngrams(text, _CHARACTERS) for text in (hypothesis, reference)), strict=True)
    for one, two in pairs:
        counts += [_size(one) if two else 0, _size(two), _size(one & two)]
    return counts


def _size(ngrams: Counter[str]) -> int:
    return sum(ngrams.values())


def _chrf_of(counts: Floats) -> Floats:
    """[resamples, 18] sums of counts -> [resamples]; orders that a text is too short for are left out."""
    hypothesis, reference, match = (counts[:, part::3] for part in range(3))
    used = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(used.sum(1), 1)
    precision = (np.where(used, match, 0) / np.where(used, hypothesis, 1)).sum(1) / orders
    recall = (np.where(used, match, 0) / np.where(used, reference, 1)).sum(1) / orders
    weighted = _BETA**2 * precision + recall
    return 100 * (1 + _BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1)
