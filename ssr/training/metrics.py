"""metrics.jsonl of a model directory: a line of JSON an epoch."""

from __future__ import annotations

import json
import os

from ssr.errors import SetupError
from ssr.files import write_text

FILE = "metrics.jsonl"


def append_metrics(model_dir, epoch, metrics):
    """Adds the line of an epoch to model_dir/metrics.jsonl, in place of those from it on.

    metrics: {name: number}
    """
    path = os.path.join(model_dir, FILE)
    earlier = [line for line in read_metrics(path) if line["epoch"] < epoch]
    write_text(path, "".join(json.dumps(line) + "\n"
                             for line in [*earlier, {"epoch": epoch, **metrics}]))


def read_metrics(path):
    """The lines of a metrics.jsonl, a list of dicts; none where there is no such file. Raises
    SetupError."""
    try:
        with open(path, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        if not all(isinstance(line["epoch"], int) for line in lines):
            raise ValueError("a line has no epoch")
        return lines
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SetupError(f"{path} is damaged: {error}; remove it") from error
