"""The items of an index in a collection of Milvus: what is asked about them, and conditions as the
expressions that Milvus filters by.

    key       INT64, the primary key: a hash of the id, so that every server gives an item the same
    id, text  VARCHAR; words: both, for browsing, with ASCII letters in lower case
    bag       VARCHAR, base64: what the item's embedding is made of (bag.Bag)
    fields    ARRAY of VARCHAR "name:value"
    terms     VARCHAR, in Milvus Lite only: the same, each between two spaces. A Milvus server has
              an index of arrays; Milvus Lite goes through them in Python, 40 times as long as
              through texts. Collections of former versions have no such column
    added     DOUBLE, seconds since 1970
    state     INT8: candidate, removed, or known without a vector
    change    INT64, microseconds since 1970: when it was written last, by the clock of who wrote it
    vector    FLOAT_VECTOR, zeros where there is none

Items that were clicked before anybody added them are not in the collection. Each server remembers
their ids, as far as it has seen the clicks; they have no text, no fields and no vector.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import logging
import os
import re

import numpy as np

from ssr.errors import SetupError, StoreError
from ssr.retrieval.bag import NOTHING, Bag
from ssr.retrieval.rows import KnownItem, StoredItem
from ssr.retrieval.values import MAX_ID, MAX_TEXT

WITHOUT_VECTOR, CANDIDATE, REMOVED = 0, 1, 2
LIMIT = 16384  # rows that Milvus gives at once
KEYS_AT_A_TIME = 4096
MAX_TERMS = 1 << 24  # letters; Milvus Lite has no limit of its own
ROWS_AT_A_TIME = 1000  # that are written at once: 12 MB at most, Milvus takes 64
BROWSED = 1000  # matches of which the newest are shown
TIMEOUT = 5.0  # seconds that Milvus may take to answer
LITE_TIMEOUT = 60.0  # Milvus Lite, which looks at each item for each query
BUILD_TIMEOUT = 600.0  # to take in a part of a build, between which it may sort what it has
# pymilvus pings every ten seconds and gives up a connection after five without an answer. Milvus
# Lite is in this process, which may be busy or paused for longer.
NO_PINGS = {"grpc.keepalive_time_ms": 2 ** 31 - 1}


def connect(uri):
    """A pymilvus.MilvusClient. uri: of a server, as http://HOST:19530, or a path that ends in .db,
    for Milvus Lite in this process. Raises SetupError, StoreError."""
    try:
        from pymilvus import MilvusClient
        if not is_address(uri):
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise SetupError("an index in Milvus needs pymilvus and, for a file, Milvus Lite: pip "
                         'install "pymilvus>=2.6" milvus-lite') from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs what it raises, in 30 lines
    if not is_address(uri):  # a server within this process, which says the same once more
        logging.getLogger("milvus_lite").setLevel(logging.CRITICAL)
        logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
        folder = os.path.dirname(os.path.abspath(uri))
        if not os.path.isdir(folder):
            raise StoreError(f"there is no directory {folder} for the file of --uri")
    with milvus_errors(uri):
        return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=TIMEOUT,
                            grpc_options={} if is_address(uri) else NO_PINGS)


def is_address(uri):
    """Whether it names a server and no file."""
    return "://" in uri


def is_lite(client):
    """Whether the server is Milvus Lite, in this process or another one."""
    return client.get_server_version().startswith("milvus_lite")


@contextlib.contextmanager
def milvus_errors(uri):
    """Turns the errors of pymilvus into StoreError. uri: of the server"""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except grpc.RpcError as error:  # which it lets through, a deadline for one
        raise StoreError(f"cannot use Milvus at {uri}: {error.details()}") from error
    except MilvusException as error:
        what = " ".join(str(error.message or error).split())
        if what == "Open local milvus failed":  # why it says in its log only
            what += ", perhaps another process has the file open: milvus-lite server shares it"
        raise StoreError(f"cannot use Milvus at {uri}: {what[:300]}") from error


def key_of(id):
    """The key of an id, 0 to 2**63 - 1. Of 100 million ids two have the same one with a
    probability of 1 in 1800; then it is an error to add the second."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "big") >> 1


# --- expressions ----------------------------------------------------------------------------------


def expression_of(conditions, has_terms):
    """filters.Conditions as Milvus filters by them, "" for none. has_terms: whether there is a
    column of terms"""
    has_any = _has_any_term if has_terms else _has_any_field
    parts = list(map(has_any, conditions.any_of))
    if conditions.none_of:
        parts.append(f"not {has_any(conditions.none_of)}")
    if conditions.candidates is not None:
        parts.append(f"key in {_list(map(key_of, conditions.candidates))}")
    if conditions.exclude:
        parts.append(f"key not in {_list(map(key_of, conditions.exclude))}")
    if conditions.since is not None:
        parts.append(f"added >= {float(conditions.since)!r}")
    return " and ".join(parts)


def both(*expressions):
    """An expression of several, of which some may be empty."""
    return " and ".join(filter(None, expressions))


def literal(text):
    """A text as expressions have it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _list(values):
    return f"[{','.join(map(str, values))}]"


def among_keys(keys):
    return f"key in {_list(keys)}"


def _has_any_field(tokens):
    return f"array_contains_any(fields, {_list(map(literal, tokens))})"


def _has_any_term(tokens):
    parts = [_contains("terms", f" {token} ") for token in tokens]
    return f"({' or '.join(parts)})"


def _has_word(word):
    return _contains("words", _lower(word))


def _contains(column, text):
    pattern = re.sub(r"([\\%_])", r"\\\1", text)
    return f"{column} like {literal(f'%{pattern}%')}"


def _lower(text):
    return text.encode().lower().decode()  # of bytes only ASCII letters change, not their number


# --- rows -----------------------------------------------------------------------------------------


def make_schema(client, dim, has_terms):
    """The schema of a collection of vectors with dim columns. has_terms: whether it has a column of
    terms"""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.INT64, is_primary=True)
    schema.add_field("id", DataType.VARCHAR, max_length=MAX_ID)
    schema.add_field("text", DataType.VARCHAR, max_length=MAX_TEXT)
    schema.add_field("words", DataType.VARCHAR, max_length=MAX_ID + 1 + MAX_TEXT)
    schema.add_field("bag", DataType.VARCHAR, max_length=65535)
    schema.add_field("fields", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4096,
                     max_length=65535)
    if has_terms:
        schema.add_field("terms", DataType.VARCHAR, max_length=MAX_TERMS)
    schema.add_field("added", DataType.DOUBLE)
    schema.add_field("state", DataType.INT8)
    schema.add_field("change", DataType.INT64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    return schema


def entity_of(row, dim, change, has_terms):
    """A rows.Row as Milvus takes it."""
    has_vector = row.vector is not None
    terms = {"terms": f" {' '.join(row.fields)} "} if has_terms else {}
    return {**terms, "key": key_of(row.id), "id": row.id, "text": row.text,
            "words": f"{_lower(row.id)}\n{_lower(row.text)}",
            "bag": base64.b64encode(row.bag.to_bytes()).decode(),
            "fields": list(dict.fromkeys(row.fields)), "added": float(row.added),
            "state": CANDIDATE if has_vector else WITHOUT_VECTOR, "change": change,
            "vector": np.asarray(row.vector if has_vector else np.zeros(dim), np.float32)}


class MilvusItems:
    """The items of a collection; any thread may call it. As items.Items, as far as an Index asks.

    names: {key: id} of items that were clicked and may not be in the collection
    """

    def __init__(self, client, uri, collection):
        """client: of connect"""
        self._client, self._uri, self.collection = client, uri, collection
        self.names = {}

    @functools.cached_property
    def columns(self):
        """{name: its parameters}"""
        with self.errors():
            described = self._client.describe_collection(self.collection, timeout=TIMEOUT)
        return {field["name"]: field["params"] for field in described["fields"]}

    @property
    def has_terms(self):
        """Whether there is a column of terms, thus Milvus Lite."""
        return "terms" in self.columns

    @property
    def timeout(self):
        """Seconds that an answer may take."""
        return LITE_TIMEOUT if self.has_terms else TIMEOUT

    def errors(self):
        """A context that turns errors of Milvus into StoreError."""
        return milvus_errors(self._uri)

    def rows(self, expression, *columns, limit=None):
        """The rows, dicts, of an expression that at most LIMIT of them fulfil."""
        with self.errors():
            return self._client.query(self.collection, filter=expression, timeout=self.timeout,
                                      output_fields=list(columns), limit=limit)

    def all_rows(self, expression, *columns):
        """Yields lists of all rows of an expression, in the order of their keys."""
        with self.errors():
            iterator = self._client.query_iterator(self.collection, batch_size=LIMIT // 8,
                                                   filter=expression, timeout=self.timeout,
                                                   output_fields=list(columns))
            try:
                while rows := iterator.next():
                    yield rows
            finally:
                iterator.close()

    def of_keys(self, keys, *columns, expression=""):
        """{key: row} of those of the keys, ints, that are there and fulfil an expression."""
        keys, found = list(keys), {}
        for start in range(0, len(keys), KEYS_AT_A_TIME):
            part = both(among_keys(keys[start:start + KEYS_AT_A_TIME]), expression)
            found.update((row["key"], row) for row in self.rows(part, "key", *columns))
        return found

    def count_of(self, expression):
        return self.rows(expression, "count(*)")[0]["count(*)"]

    # --- as of items.Items

    def find(self, ids):
        """As of items.Items."""
        ids = {key_of(id): id for id in ids}
        known = {}
        for key, row in self.of_keys(ids, "id", "bag", "state").items():
            if row["id"] != ids[key]:
                raise StoreError(f"{row['id']!r} and {ids[key]!r} have the same key, of which one "
                                 "item only can be in an index in Milvus: give one another id")
            known[row["id"]] = KnownItem(key, self._bag(row), row["state"] == REMOVED)
        return known

    def texts(self, keys):
        """As of items.Items."""
        found = {key: (row["id"], row["text"])
                 for key, row in self.of_keys(keys, "id", "text").items()}
        for key in set(keys) - set(found):
            if key not in self.names:
                raise StoreError(f"the collection {self.collection} has no item {key} any more")
            found[key] = self.names[key], ""
        return found

    def bags(self, keys):
        """As of items.Items."""
        found = self.of_keys(keys, "id", "bag")
        return {key: self._bag(found[key]) if key in found else NOTHING for key in keys}

    def _bag(self, row):
        try:
            return Bag.from_bytes(base64.b64decode(row["bag"], validate=True))
        except ValueError as error:
            raise StoreError(self._damage(row)) from error

    def faults(self):
        """As of items.Items."""
        for rows in self.all_rows("", "key", "id", "bag", "vector"):
            for row in rows:
                try:
                    self._bag(row)
                    if not np.isfinite(row["vector"]).all() or row["key"] != key_of(row["id"]):
                        yield self._damage(row)
                except StoreError as error:
                    yield str(error)

    def _damage(self, row):
        return (f"item {row['id'][:100]!r} of the collection {self.collection} is damaged: add it "
                "again")

    def fields(self, keys):
        """{key: tokens} of those of the keys that have any."""
        return {key: tuple(row["fields"]) for key, row in self.of_keys(keys, "fields").items()
                if row["fields"]}

    def vector(self, key):
        """As of items.Items."""
        found = self.of_keys([key], "vector", expression=f"state == {CANDIDATE}")
        return np.array(found[key]["vector"], np.float32) if found else None

    def scan(self):
        """As of items.Items."""
        for rows in self.all_rows(f"state == {CANDIDATE}", "key", "id", "text", "bag", "change",
                                  "vector"):
            yield [StoredItem(row["key"], row["id"], row["text"], self._bag(row),
                              np.array(row["vector"], np.float32), False, row["change"])
                   for row in rows]

    def states_since(self, change):
        """Yields lists of rows with key, state and change, of the items that were changed later."""
        columns = "key", "state", "change"
        rows = self.rows(f"change > {change}", *columns, limit=LIMIT)
        # An iterator waits for all servers several times, 0.2 s each: not for the few of a query.
        return [rows] if len(rows) < LIMIT else self.all_rows(f"change > {change}", *columns)

    def counts(self):
        """As of items.Items."""
        items = self.count_of("")
        candidates, removed = (self.count_of(f"state == {state}") for state in (CANDIDATE, REMOVED))
        return {"items": items, "candidates": candidates, "removed": removed,
                "without_vector": items - candidates - removed}

    def browse(self, words, limit, seconds=TIMEOUT):
        """As of items.Items; where there are more than BROWSED matches, the newest of BROWSED of
        them."""
        expression = both(f"state == {CANDIDATE}", *map(_has_word, words))
        rows = self.rows(expression, "key", "id", "text", "change", limit=max(limit, BROWSED))
        rows.sort(key=lambda row: (-row["change"], -row["key"]))
        return [(row["id"], row["text"]) for row in rows[:limit]], len(rows) < BROWSED

    # --- writing

    def write(self, rows, dim, change, is_new=False):
        """Writes rows.Row, each id once, in parts of ROWS_AT_A_TIME. dim: of the vectors; change:
        its number; is_new: whether the collection is empty"""
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            part = [entity_of(row, dim, change, self.has_terms)
                    for row in rows[start:start + ROWS_AT_A_TIME]]
            if is_new:  # without a look for each whether it is there
                with self.errors():
                    self._client.insert(self.collection, part, timeout=BUILD_TIMEOUT)
            else:
                self.upsert(part)

    def withdraw(self, keys, change):
        """Takes items that are there off the candidates, in the same way. They are written as a
        whole: a server before Milvus 2.6.2 changes no single columns."""
        for start in range(0, len(keys), ROWS_AT_A_TIME):
            found = self.of_keys(keys[start:start + ROWS_AT_A_TIME], *self.columns)
            self.upsert([{**row, "state": REMOVED, "change": change} for row in found.values()])

    def upsert(self, entities):
        with self.errors():
            self._client.upsert(self.collection, entities, timeout=self.timeout)
