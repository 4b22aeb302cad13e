"""A model beside baselines: the same queries and candidates for all, one table."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from ssr.evaluation.baselines import BASELINES
from ssr.evaluation.metrics import NAMES, Catalogue, measure_all
from ssr.evaluation.queries import Queries

logger = logging.getLogger(__name__)


class Comparison(NamedTuple):
    """What was asked, what was answered, and how good that is.

    queries: Queries, of which the labels, sessions and positions are those of all rows
    catalogue: Catalogue
    topk: the K, ints
    rows: list of Answers
    metrics: for each row what metrics.measure returns
    """

    queries: Queries
    catalogue: Catalogue
    topk: list
    rows: list
    metrics: list

    @classmethod
    def of(cls, queries, catalogue, topk, rows):
        """Measures the rows, a list of Answers."""
        return cls(queries, catalogue, topk, rows,
                   measure_all(rows, queries.sessions, catalogue, topk))


def answer_with_baselines(names, train, task, k):
    """[Answers] of baselines, with lists of the k best items.

    names: of BASELINES
    train: reader.YoochooseDataset
    task: queries.Task
    """
    rows = []
    for name in names:
        begin = time.time()
        baseline = BASELINES[name](train)
        made = time.time()
        answers = baseline.answer(task.queries(baseline.known), task.candidates, k)
        logger.info("%s: made in %.2f s, %d queries answered in %.2f s", name, made - begin,
                    len(answers.ranks), time.time() - made)
        rows.append(answers)
    return rows


def table(comparison):
    """The lines of the table of a Comparison, a row for each K and model or baseline."""
    rows = [["K", "", *NAMES]]
    for k in comparison.topk:
        for answers, metrics in zip(comparison.rows, comparison.metrics):
            rows.append([str(k), answers.name, *(str(metrics[f"{name}@{k}"]) for name in NAMES)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows]
