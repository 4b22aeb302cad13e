"""What requests and answers hold, as /docs and /openapi.json describe it."""

# Without `from __future__ import annotations`: models that are made within functions hold types
# that are local there, which strings could not name.

from typing import Annotated, Dict, List, Optional, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from ssr.preparation.text import field_tokens
from ssr.retrieval import Filter, Item, check_id, check_item


def _check_id(id):
    check_id(id)
    return id


def _check_new_id(id):
    check_item(Item(id))
    return id


def _check_text(text):
    check_item(Item("any", text))
    return text


def _check_fields(fields):
    field_tokens(fields)
    return fields


Id = Annotated[StrictStr, AfterValidator(_check_id)]
NewId = Annotated[StrictStr, AfterValidator(_check_new_id)]  # of an item that may be added by it
Text = Annotated[StrictStr, AfterValidator(_check_text)]
Value = Union[Text, Annotated[StrictInt, Field(ge=-2**63, lt=2**63)]]
Fields = Annotated[Dict[Text, Union[Value, List[Value]]], AfterValidator(_check_fields)]
MAX_TERMS = 100  # fields in a filter
# A pretrained vector. The model says how many numbers one has.
Vector = Annotated[List[Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=1 << 14)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


# --- requests -------------------------------------------------------------------------------------


class Body(BaseModel):
    """A request's body. A name that is misspelt is an error and not ignored."""

    model_config = ConfigDict(extra="forbid")


class ClickMessage(Body):
    session: Annotated[Text, Field(max_length=200)] = Field(
        description="any text that distinguishes this visit of a reader from all others")
    item: NewId
    time: Optional[Seconds] = Field(
        None, description="seconds since 1970, now if left out. A time ahead of the server's clock "
        "becomes now; one that is further back than `candidate_age` of /healthz is refused")


def make_queries(limits):
    """(the query for one session, that for many, that for an item), models that admit what Limits
    admit."""
    clicks = Annotated[List[Id], Field(max_length=limits.max_session)]
    terms = Annotated[List[Text], Field(max_length=MAX_TERMS)]
    ids = Annotated[List[StrictStr], Field(max_length=limits.max_ids)]
    number = Annotated[StrictInt, Field(ge=1, le=limits.max_k)]

    class Filtered(Body):
        """With what retrieval.Filter has, by the same names."""

        k: number = min(20, limits.max_k)
        only: terms = Field([], description="fields, of which an item has one for each name that "
                            "is given", examples=[["section:sports", "section:politics"]])
        without: terms = Field([], description="fields of which an item has none")
        candidates: Optional[ids] = Field(None, description="ids to choose from; all if left out")
        exclude: ids = Field([], description="ids to leave out")
        max_age: Optional[Seconds] = Field(
            None, description="seconds since an item was added last")
        at_most: Annotated[Dict[Text, number], Field(max_length=MAX_TERMS)] = Field(
            {}, description="for the name of a field, how many items with the same value the "
            "answer may hold", examples=[{"section": 3}])

        def filter(self):
            return Filter(*(getattr(self, name) for name in Filter._fields))

    class Query(Filtered):
        exclude_session: StrictBool = Field(True, description="leave out the session's own items")

    class SessionQuery(Query):
        session: clicks = Field(description="ids of the clicked items, oldest first")

    class BatchQuery(Query):
        sessions: Annotated[List[clicks], Field(max_length=limits.max_batch)]

    class SimilarQuery(Filtered):
        item: Id

    return SessionQuery, BatchQuery, SimilarQuery


def make_items(limits):
    """(what an item holds beside its id, an item with its id), models that admit texts of up to
    limits.max_text bytes."""

    def check_length(text):
        size = len(text.encode())
        if size > limits.max_text:
            raise ValueError(f"{size} bytes in UTF-8, at most {limits.max_text} are taken")
        return text

    class Content(Body):
        text: Annotated[Text, AfterValidator(check_length)] = Field(
            "", description=f"what readers see, such as a title; at most {limits.max_text} bytes")
        fields: Fields = Field({}, description="for each name a value or a list of values",
                               examples=[{"section": "sports"}])
        vector: Optional[Vector] = Field(
            None, description="its pretrained vector, for a model that was trained with such: as "
            "many numbers as there")

    class ItemMessage(Content):
        id: NewId

    return Content, ItemMessage


# --- answers --------------------------------------------------------------------------------------


class HitMessage(BaseModel):
    id: str
    score: float = Field(description="of source `nearest`: the cosine of item and session, -1 to "
                         "1; of source `live`: on a scale of its own, made of cosine and clicks; "
                         "of source `popular`: the clicks in training")
    text: str
    source: str = Field(description="`live`: ranked by recent clicks; `nearest`: by its vector "
                        "alone; `popular`: read most in training, for a session of which nothing "
                        "is known. Hits of the first kind come before all others, but for an index "
                        "that has taken in few clicks so far")


class AnswerMessage(BaseModel):
    hits: List[HitMessage] = Field(description="best first")
    skipped: int = Field(description="clicks left out: their items are unknown or have no vector")
    reason: str = Field(description="why there are no hits, or why they are what is read most and "
                        "not those of the session; empty if they are those")


class AnswersMessage(BaseModel):
    answers: List[AnswerMessage]


class AddedMessage(BaseModel):
    new: int
    replaced: int = Field(description="items that replaced a candidate with the same id")
    without_vector: List[str] = Field(
        description="ids of items that cannot be recommended by their vector: the model knows none "
        "of their words")


class RemovedMessage(BaseModel):
    removed: int
    unknown: List[str] = Field(description="ids that were no candidates")


class ClicksMessage(BaseModel):
    clicks: int = Field(description="how many were taken in")


class ReloadedMessage(BaseModel):
    reloaded: bool = Field(description="false if no new build was waiting, which may be since the "
                           "service has gone over to it before it was asked to")
    model: str = Field(description="the one that answers")


class Article(BaseModel):
    id: str
    text: str


class Articles(BaseModel):
    items: List[Article]
    complete: bool = Field(description="false if there was no time to look at all items")


class Health(BaseModel):
    status: str = Field(description="`ok`; `reading`: of several processes the one that writes is "
                        "being started again, and changes have to wait for it")
    model: str
    change: int = Field(description="number of the last change to the index")
    takes_fresh: bool = Field(description="whether items can be added that the model never saw")
    live: bool = Field(description="whether the index takes clicks in and ranks by them")
    candidate_age: Optional[float] = Field(
        description="of a live index: seconds after its last click that an item is ranked by "
        "clicks, and that a click may be late")
    click_backlog: int = Field(description="clicks that are acknowledged and not on the disk yet")
    writable: bool = Field(description="whether changes are taken")
    needs_token: bool = Field(description="whether changes need a bearer token")
    max_k: int = Field(description="the most hits that may be asked for")


class Problem(BaseModel):
    loc: List[Union[str, int]] = Field(description="the path to the field")
    msg: str
    type: str


class Problems(BaseModel):
    detail: List[Problem]
