"""A trained model with its items: recommendations, similar items, evaluation, more clicks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import threading
import weakref

import numpy as np
import polars as pl

from ssr.api import homes
from ssr.api.answers import best_items, hits_table
from ssr.api.catalogue import Catalogue, as_items, as_vectors
from ssr.api.clicks import as_raw_id, has_columns, is_number, read_sessions
from ssr.api.testing import evaluate
from ssr.data_directory import DataDirectory
from ssr.errors import DataError, SetupError
from ssr.own_modules import own_modules
from ssr.preparation.text import ItemText, TokenVocabulary, read_items
from ssr.retrieval.repeats import OwnItems
from ssr.retrieval.values import Item
from ssr.training.metrics import FILE as METRICS_FILE
from ssr.training.metrics import read_metrics
from ssr.training.settings import Settings

# Held while a model is made: the names of Paddle's parameters and its seed are the process's.
making = threading.RLock()


class Model:
    """A trained model, made by `ssr.fit` and `ssr.load`. Its methods may be called from any thread.

    Raw ids come back in the type that they were given in when the model was trained, str or int.
    Tables are polars DataFrames; `pandas.DataFrame(table.to_dicts())` makes them one of pandas.

    Attributes
    ----------
    settings : ssr.training.settings.Settings
        What the flags of the training said.
    epoch : int
        Which epoch of the training it is: the best in validation, else the last.
    """

    def __init__(self, path, model_dir=None, owned=False):
        """path: a home (homes.py), or a data directory; model_dir: of train.py, "model" in path for
        None; owned: whether the directory goes with the model"""
        self.directory = DataDirectory.open(path)
        self.profile = homes.read_profile(path)
        self.checkpoint = homes.choose(model_dir or os.path.join(path, homes.MODEL_DIR))
        self.epoch = self.checkpoint.epoch
        self.settings = Settings.from_meta(self.checkpoint.meta)
        with making:
            self.catalogue = Catalogue.read(self.directory, self.checkpoint)
        self._vocabulary = None
        if self.checkpoint.meta["model"]["num_tokens"]:
            self._vocabulary = TokenVocabulary.load(self.directory.tokens)
        self._changing = threading.Lock()
        added, vectors = (os.path.join(path, name)
                          for name in (homes.ADDED_FILE, homes.ADDED_VECTORS_FILE))
        if os.path.exists(added):
            self.add_items(read_items(added), vectors if os.path.exists(vectors) else None)
        if owned:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)

    def __repr__(self):
        return (f"<ssr.Model: {len(self.catalogue)} items, epoch {self.epoch} of "
                f"recipe {self.settings.recipe}>")

    # --- what it is

    @property
    def history(self):
        """A row an epoch of the training: epoch, avg_cost, acc, seconds and, with validation,
        valid_recall@20 and valid_mrr@20. A polars DataFrame."""
        lines = read_metrics(os.path.join(self.checkpoint.model_dir, METRICS_FILE))
        return pl.DataFrame(lines, infer_schema_length=None)

    @property
    def items(self):
        """A row an item: item, text, clicks (in training), has_vector. A polars DataFrame."""
        catalogue = self.catalogue
        clicks = catalogue.encoder.model.item_clicks.numpy()
        return pl.DataFrame({
            "item": self._given(range(len(catalogue))), "text": catalogue.texts,
            "clicks": np.pad(clicks, (0, len(catalogue) - len(clicks))),
            "has_vector": catalogue.encoder.has_vector})

    def vectors(self, ids):
        """The vectors of items.

        Parameters
        ----------
        ids : list of str or int

        Returns
        -------
        numpy.ndarray
            <float32>[len(ids), dim], of length 1; not-a-number for an item without a vector.

        Raises
        ------
        DataError
            For an id that is not known.
        """
        catalogue = self.catalogue
        numbers = self._numbers(ids, catalogue)
        vectors = catalogue.encoder.vectors[numbers]
        vectors[~catalogue.encoder.has_vector[numbers]] = np.nan
        return vectors

    # --- questions

    def recommend(self, sessions, k=20, *, exclude=(), only=None, exclude_session=True):
        """The items that fit sessions best.

        Parameters
        ----------
        sessions
            A list of sessions, each a list of raw ids, oldest first; or a table of clicks. Unknown
            ids are skipped.
        k : int
            Items wanted for each.
        exclude : collection of raw ids
            No candidates.
        only : collection of raw ids, optional
            The candidates; all items where not given.
        exclude_session : bool
            Whether the items of a session are no candidates for it.

        Returns
        -------
        polars.DataFrame
            A row a recommendation, the best first: session (its place in the list, from 0 on, or
            its id in the table), rank (from 1 on), item, score (the cosine, -1 to 1), text. A
            session without a click on an item that has a vector has no rows.

        Raises
        ------
        DataError, SetupError
        """
        catalogue = self.catalogue  # one, whatever is added meanwhile
        encoder = catalogue.encoder
        columns = self.profile.columns if has_columns(sessions, {}) else {}
        labels, clicks = read_sessions(sessions, columns)
        numbers = [catalogue.known(session) for session in clicks]
        users = encoder.encode_sessions(
            [[click for click in map(encoder.click, session) if click] for session in numbers])
        asked = [place for place, user in enumerate(users) if user is not None]
        candidates = self._candidates(catalogue, exclude, only)
        own = [_excluded(numbers[place]) if exclude_session
               else _own_scores(encoder, numbers[place], users[place]) for place in asked]
        queries = np.array([users[place] for place in asked])
        hits = best_items(queries, encoder.vectors, candidates, own, k)
        return hits_table("session", [labels[place] for place in asked], hits, self._given,
                          catalogue.texts)

    def similar_items(self, ids, k=20, *, exclude=(), only=None):
        """The items whose vectors are next to those of some items.

        Parameters
        ----------
        ids : list of raw ids, or one
        k, exclude, only
            As of `recommend`.

        Returns
        -------
        polars.DataFrame
            As of `recommend`, with columns of_item, rank, item, score, text. An item without a
            vector has no rows.

        Raises
        ------
        DataError
            For an id that is not known.
        """
        catalogue = self.catalogue
        ids = [ids] if isinstance(ids, (str, int)) else list(ids)
        asked = [number for number in self._numbers(ids, catalogue)
                 if catalogue.encoder.has_vector[number]]
        vectors = catalogue.encoder.vectors
        hits = best_items(vectors[asked], vectors, self._candidates(catalogue, exclude, only),
                          [_excluded([number]) for number in asked], k)
        return hits_table("of_item", self._given(asked), hits, self._given, catalogue.texts)

    def evaluate(self, test=None, metrics=("recall@20", "mrr@20"), *, baselines=(),
                 positions="last", **flags):
        """How well the model, and baselines beside it, predict clicks.

        Parameters
        ----------
        test
            Clicks of the kinds that `ssr.fit` takes; None for the test part of the data that the
            model was trained on. Items that the model does not know count as misses.
        metrics : sequence of str
            Of recall, mrr, ndcg, hit_rate, coverage and popularity, each with @K.
        baselines : sequence of str
            Of popular, item_knn and v_sknn, made from the sessions of the training.
        positions : str
            "last", the last click of each session; or "all", every one but the first.
        **flags
            Of preprocess.py, for tables and files, as ``session_column``.

        Returns
        -------
        polars.DataFrame
            A row a model and metric: model, metric, value, low, high. The last two are the 95%
            interval by bootstrap over sessions.

        Raises
        ------
        DataError, SetupError
        """
        if test is None:
            test = self.directory.path
        elif has_columns(test, flags):
            flags = {**self.profile.columns, **flags}
        return evaluate(self, read_sessions(test, flags), metrics, baselines, positions)

    # --- changes

    def add_items(self, texts=None, item_vectors=None):
        """Adds items by their content, or gives other content to those that are there, in place of
        all that they had. They can be recommended at once, and clicked. Nothing is trained; one
        call for many items is quicker.

        Parameters
        ----------
        texts : dict, optional
            {raw id: text} or {raw id: (text, {field: value})}.
        item_vectors : optional
            For a model with pretrained vectors, those of the items, as of `ssr.fit`. An item that
            is only here has no text.

        Returns
        -------
        ssr.retrieval.Added
            new and replaced: how many; without_vector: ids of those of which the model knows
            nothing.

        Raises
        ------
        DataError
            Where the model was trained without such content.
        """
        vectors = {} if item_vectors is None else as_vectors(item_vectors, "item_vectors")
        items = {} if texts is None else as_items(texts)
        items = {**dict.fromkeys(vectors, ItemText()), **items}
        if self.profile.ids == "int" and not all(map(is_number, items)):
            raise DataError("texts: the raw ids of the model are integers, and these are not")
        with self._changing:
            self.catalogue, added = self.catalogue.extended(items, vectors, self._vocabulary)
        return added

    def update(self, clicks, *, valid=None, texts=None, item_vectors=None, **flags):
        """Trains further on newer clicks; items that are new get into the catalogue, all others
        keep their numbers.

        Parameters
        ----------
        clicks, valid, texts, item_vectors, **flags
            As of `ssr.fit`. Flags that are not given are those of this model's training, names of
            columns included; so are pretrained vectors that are not given.

        Returns
        -------
        Model
            Another one; this one stays as it is.

        Raises
        ------
        DataError, SetupError
        """
        from ssr.api.fitting import update

        updated = update(self, clicks, valid, texts, item_vectors, flags)
        missing = {raw: item for raw, item in self.catalogue.added.items()
                   if raw not in updated.catalogue.numbers}
        if missing:
            vectors = self.catalogue.added_vectors
            updated.add_items(missing, {raw: vectors[raw] for raw in missing
                                        if raw in vectors} or None)
        return updated

    # --- on the disk

    def save(self, path, overwrite=False):
        """Saves the model and its data, for `ssr.load` and for the commands: ``--data_dir PATH
        --model_dir PATH/model``.

        Parameters
        ----------
        path : str
            A directory that is made.
        overwrite : bool
            Whether a saved model that is there may be replaced.

        Raises
        ------
        SetupError
        """
        homes.save_home(os.fspath(path), overwrite, self.directory, self.checkpoint, self.profile,
                        self.catalogue.added, self.catalogue.added_vectors)

    def build_index(self, path, overwrite=False):
        """Makes an index of all items, as retrieve.py build does: for retrieve.py, serve.py and
        ssr.retrieval.Index.

        Parameters
        ----------
        path : str
            A directory that is made.
        overwrite : bool
            Whether an index that is there may be replaced.

        Raises
        ------
        DataError, StoreError, SetupError
        """
        if not importlib.util.find_spec("faiss"):
            raise SetupError("an index needs faiss: pip install faiss-cpu")
        with own_modules():
            from ssr.retrieval.building import ItemFiles, build_index
            from ssr.retrieval.index import Index
        directory, path = self.directory, os.fspath(path)
        if directory.items is None:
            raise DataError(f"{directory.path} has no items.txt, and an index names the items")
        files = ItemFiles(directory.items, directory.item_tokens, directory.tokens,
                          directory.item_vectors)
        with making:
            build_index(path, self.checkpoint, files, overwrite)
            if self.catalogue.added:
                with Index.open(path, writable=True) as index:
                    vectors = self.catalogue.added_vectors
                    index.add([Item(raw, *item, vectors.get(raw))
                               for raw, item in self.catalogue.added.items()])

    # --- inside

    def _given(self, numbers):
        """The raw ids of items, in the type that they were given in: a polars Series."""
        raw_ids = [self.catalogue.raw_ids[number] for number in numbers]
        if self.profile.ids == "int":
            return pl.Series(list(map(int, raw_ids)), dtype=pl.Int64)
        return pl.Series(raw_ids, dtype=pl.String)

    def _numbers(self, ids, catalogue):
        """The numbers of raw ids. Raises DataError for one that is not known."""
        raw = [str(as_raw_id(id, "ids")) for id in ids]
        for id in raw:
            if id not in catalogue.numbers:
                raise DataError(f"{id!r:.100} is no item of the model")
        return catalogue.known(raw)

    def _candidates(self, catalogue, exclude, only):
        """<int64>[n]: the numbers of the candidates. Raises DataError for none."""
        def mask(ids, name):
            if isinstance(ids, (str, bytes)):
                raise DataError(f"{name} is a collection of raw ids, not {ids!r:.40}")
            return catalogue.mask([str(as_raw_id(id, name)) for id in ids])
        chosen = catalogue.encoder.has_vector & ~mask(exclude, "exclude")
        if only is not None:
            chosen &= mask(only, "only")
        if not chosen.any():
            raise DataError("there are no candidates: exclude and only leave no item that has a "
                            "vector")
        return np.flatnonzero(chosen)


def _excluded(numbers):
    """Of answers.best_items: these items are no candidates."""
    return np.array(numbers, np.int64), np.full(len(numbers), -np.inf, np.float32)


def _own_scores(encoder, session, user):
    """Of answers.best_items: what the items of a session score. session: numbers of items, oldest
    first; user: its vector"""
    clicked = encoder.encoded(session)
    own = OwnItems.of(np.array(clicked, np.int64), [len(clicked)])
    cosines = encoder.vectors[own.items] @ user
    return own.items, cosines if encoder.repeats is None else encoder.repeats(cosines, own)
