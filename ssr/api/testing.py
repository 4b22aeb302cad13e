"""A model and baselines on test sessions, as a table."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl

import reader
from ssr.errors import DataError, SetupError
from ssr.evaluation import comparison
from ssr.evaluation.baselines import BASELINES
from ssr.evaluation.metrics import NAMES, Catalogue
from ssr.evaluation.queries import Task
from ssr.evaluation.ranking import ModelRecommender

BATCH_SIZE = 200  # queries that are ranked at a time


def evaluate(model, sessions, metrics, baselines, positions):
    """As Model.evaluate. sessions: clicks.Sessions"""
    wanted = [_parse_metric(name) for name in metrics]
    _check_choices("baselines", baselines, BASELINES)
    _check_choices("positions", [positions], ("last", "all"))
    dataset, encoder = _as_dataset(model.catalogue, sessions)
    task = Task(dataset, positions, encoder.has_vector, np.ones_like(encoder.has_vector))
    topk = sorted({k for _, k in wanted})
    queries = task.queries(encoder.has_vector)
    rows = [ModelRecommender("model", encoder, BATCH_SIZE).answer(queries, task.candidates,
                                                                  topk[-1])]
    if baselines:
        rows += comparison.answer_with_baselines(baselines, _train_sessions(model, dataset), task,
                                                 topk[-1])
    clicks = encoder.model.item_clicks.numpy()
    clicks = np.pad(clicks, (0, dataset.vocab_size - len(clicks)))
    measured = comparison.Comparison.of(queries, Catalogue(task.candidates, clicks), topk,
                                        rows).metrics
    return pl.DataFrame(
        [(answers.name, f"{name}@{k}", *figures[f"{name}@{k}"])
         for answers, figures in zip(rows, measured) for name, k in wanted],
        schema={"model": pl.String, "metric": pl.String, "value": pl.Float64, "low": pl.Float64,
                "high": pl.Float64}, orient="row")


def _parse_metric(metric):
    """(name, K) of "recall@20". Raises SetupError."""
    name, _, k = str(metric).partition("@")
    if name not in NAMES or not k.isdecimal() or not 1 <= int(k) <= 10 ** 6:
        raise SetupError(f"{metric!r} is no metric: one of {', '.join(NAMES)}, each with @K, as "
                         "recall@20")
    return name, int(k)


def _check_choices(name, values, choices):
    for value in [values] if isinstance(values, str) else values:
        if value not in choices:
            raise SetupError(f"{name}: {value!r} is none of {', '.join(choices)}")


def _as_dataset(catalogue, sessions):
    """(reader.YoochooseDataset, IdEncoder) of test sessions: items that the model does not know get
    numbers behind its own. Raises DataError where there is nothing to predict."""
    lengths = np.array([len(session) for session in sessions.clicks], np.int64)
    long = [session for session in sessions.clicks if len(session) > 1]
    if not long:
        raise DataError("test: no session has two clicks, so there is nothing to predict")
    unknown = {}
    items = [catalogue.numbers[id] if id in catalogue.numbers
             else unknown.setdefault(id, len(catalogue) + len(unknown))
             for id in itertools.chain(*long)]
    offsets = np.cumsum([0, *map(len, long)])
    size = len(catalogue) + len(unknown)
    dataset = reader.YoochooseDataset(np.array(items, np.int32), offsets, size,
                                      int((lengths < 2).sum()))
    return dataset, catalogue.encoder_of(size)


def _train_sessions(model, dataset):
    """The sessions that the model was trained on, with the items of a test data set."""
    path = model.directory.sessions("train")
    if path is None:
        raise DataError(f"{model.directory.path} has no train_data, of which baselines are made")
    return reader.load_sessions(path, dataset.vocab_size)
