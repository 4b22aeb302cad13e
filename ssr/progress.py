"""Progress bars, where somebody is there to see them."""

from __future__ import annotations

import importlib.util
import sys

from tqdm import tqdm


def progress_bar(iterable=None, **options):
    """A tqdm that leaves no trace when it is done. It shows on a terminal and in a notebook, and is
    disabled elsewhere: in a log it would be a line for each step.

    iterable, options: as of tqdm
    """
    in_notebook = _in_notebook()
    kind = tqdm
    if in_notebook and importlib.util.find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as kind
    return kind(iterable, leave=False, disable=not (in_notebook or sys.stderr.isatty()), **options)


def _in_notebook():
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return hasattr(shell, "kernel")
