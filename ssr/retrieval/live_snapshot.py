"""What a live index knows from its clicks, in a file: whoever opens the index reads that, and from
the log only what came after it.

    the SHA-256 of the rest, 64 hexadecimal digits and a line feed
    a file of numpy.savez: the arrays of a Stream; "state": JSON, what else there is

It lies in the build whose items it speaks of, and is never needed: one that is damaged, or of
something else than what is open, is passed over and the log is read from its beginning.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import logging
import os
import zipfile

import numpy as np

from ssr.files import write_atomically
from ssr.news.scoring import LAGS, PASSAGES, WINDOWS

logger = logging.getLogger(__name__)

FILE = "live.snapshot"
FORMAT = 1
STATE = "state"


def identity(model, dim, age):
    """What a snapshot must have been made with to be of use, a dict. model: a digest; dim: of its
    vectors; age: in seconds"""
    return {"format": FORMAT, "model": model, "dim": dim, "age": age, "windows": list(WINDOWS),
            "passages": list(PASSAGES), "lags": LAGS}


def write_snapshot(path, state, arrays):
    """Replaces the file, at once or not at all.

    state: a dict for JSON; arrays: {name: array}
    Raises SetupError.
    """
    content = io.BytesIO()
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    np.savez(content, **arrays, **{STATE: text})
    content = content.getbuffer()
    digest = hashlib.sha256(content).hexdigest()

    def write(name):
        with open(name, "wb") as f:
            f.write(digest.encode() + b"\n")
            f.write(content)

    write_atomically(path, write)


def read_snapshot(path):
    """(state, arrays) as of write_snapshot; None where there is no file, or a damaged one."""
    try:
        with open(path, "rb") as f:
            digest, content = f.read(65), f.read()
        if digest != hashlib.sha256(content).hexdigest().encode() + b"\n":
            raise ValueError("its checksum is another one")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return json.loads(arrays.pop(STATE).tobytes()), arrays
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("%s is passed over (%s): the clicks are read from the log", path, error)
        return None


def remove_unfinished(path):
    """Removes what processes have left that were killed while they wrote it."""
    for name in glob.glob(glob.escape(path) + ".*.tmp"):
        with contextlib.suppress(OSError):
            os.remove(name)
