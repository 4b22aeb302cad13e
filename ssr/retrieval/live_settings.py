"""What makes an index live: INDEX/live.json. It belongs to the index, not to whoever opens it, and
outlives its builds."""

from __future__ import annotations

import json
import os
from typing import NamedTuple, Optional

from ssr.errors import StoreError
from ssr.files import write_json
from ssr.news import AGE, Scoring
from ssr.retrieval.builds import current_build, lock

FILE, CLICKS_FILE = "live.json", "clicks.sqlite"


class LiveSettings(NamedTuple):
    """candidate_age: seconds after its last click that an item remains a candidate of the clicks;
    scoring: the weights; clicks: the address of the Redis that has the clicks (redis_clicks.py),
    None for a log of the index's own"""

    candidate_age: float = AGE
    scoring: Scoring = Scoring()
    clicks: Optional[str] = None


def read_live(path):
    """The LiveSettings of the index in a directory, None where it is not live. Raises
    StoreError."""
    file = os.path.join(path, FILE)
    try:
        with open(file, encoding="utf-8") as f:
            values = json.load(f)
        age = float(values["candidate_age"])
        if not 0 < age < float("inf"):
            raise ValueError(f"the candidate age is {age}")
        return LiveSettings(age, Scoring.from_json(json.dumps(values["scoring"])),
                            values.get("clicks"))
    except FileNotFoundError:
        # A log of clicks makes an index live: versions before kept nothing else.
        return LiveSettings() if os.path.exists(os.path.join(path, CLICKS_FILE)) else None
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{file} is damaged ({error}): remove it, then retrieve.py live writes it "
                         "anew") from error


def write_live(path, settings):
    """Makes the index in a directory live, or changes how. Raises SetupError."""
    values = {"candidate_age": settings.candidate_age,
              "scoring": json.loads(settings.scoring.to_json())}
    if settings.clicks is not None:
        values["clicks"] = settings.clicks
    write_json(os.path.join(path, FILE), values)


def live_settings(path, writable, scoring=None, candidate_age=None, clicks=None):
    """The LiveSettings with which to open an index, None where it is not live. Opening it writable
    with a scoring or with clicks makes it live. Raises StoreError.

    scoring: in place of the stored one, for who opens it alone; stored where there is none yet
    candidate_age: must be the stored one; stored where there is none yet
    clicks: as scoring
    """
    stored = read_live(path)
    if stored is None and scoring is None and clicks is None:
        return None
    if not os.path.exists(os.path.join(path, FILE)):
        stored = LiveSettings(AGE if candidate_age is None else float(candidate_age),
                              scoring or Scoring(), clicks)
        if writable:
            write_live(path, stored)
    elif candidate_age not in (None, stored.candidate_age):
        raise StoreError(
            f"{path} keeps what was clicked in the last {stored.candidate_age / 3600:g} hours, not "
            f"{candidate_age / 3600:g}: to change that, retrieve.py live --index_dir {path} "
            f"--candidate_age {candidate_age / 3600:g}")
    given = {"scoring": scoring, "clicks": clicks}
    return stored._replace(**{name: value for name, value in given.items() if value is not None})


def change_live(path, scoring=None, candidate_age=None, clicks=None):
    """Makes an index live, or changes how; what is None stays as it is. Returns the LiveSettings.
    Raises StoreError, SetupError."""
    current_build(path)  # complains where there is no index
    descriptor = lock(path)
    try:
        changes = {"scoring": scoring, "candidate_age": candidate_age, "clicks": clicks}
        settings = (read_live(path) or LiveSettings())._replace(
            **{name: value for name, value in changes.items() if value is not None})
        write_live(path, settings)
        return settings
    finally:
        os.close(descriptor)
