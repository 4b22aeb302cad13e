"""The rooms of the package: which may import which, how large a file may grow, and that importing
the package does nothing to the process."""

import ast
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMMANDS = {"train", "infer", "preprocess", "retrieve", "serve", "evaluate_stream", "export",
            "cluster_train", "plot_metrics"}
CORE = {"nets", "reader", "utils"}
FOUNDATIONS = {"ssr", "ssr.errors", "ssr.files", "ssr.commands", "ssr.pickled", "ssr.progress",
               "ssr.data_directory", "ssr.own_modules", "ssr.impressions", "ssr.architecture"}
# Commands that the API is made of: what they do with their flags is what it does with its own.
COMMANDS_OF_API = {"train", "preprocess"}

# Each room and what it may import of ours, itself always. A file that has a line of its own is a
# room of its own.
ARROWS = {
    "foundations": {},
    "ssr.runtime": {"foundations"},
    "ssr.kernels": {"foundations", "ssr.runtime"},
    "core": {"foundations", "ssr.runtime", "ssr.kernels"},
    "ssr.training": {"foundations", "ssr.runtime", "ssr.kernels", "core"},
    "ssr.preparation": {"foundations", "ssr.preparation.text"},
    "ssr.preparation.text": {"foundations"},
    "ssr.news": {"foundations"},  # numpy alone
    "ssr.retrieval": {"foundations", "ssr.runtime", "ssr.kernels", "core", "ssr.training",
                      "ssr.news", "ssr.preparation.text"},
    "ssr.evaluation": {"foundations", "ssr.runtime", "ssr.kernels", "core", "ssr.retrieval"},
    "ssr.news.replay": {"foundations", "ssr.news", "ssr.retrieval"},
    "ssr.service": {"foundations", "ssr.retrieval", "ssr.preparation.text"},
    "ssr.cluster": {"foundations", "ssr.runtime", "ssr.kernels", "core", "ssr.training"},
    "ssr.api": {"foundations", "ssr.runtime", "core", "ssr.training", "ssr.preparation",
                "ssr.preparation.text", "ssr.retrieval", "ssr.evaluation"},
}


def room_of(module):
    """The room of a module of ours, "a command" for a script at the top, None for other modules."""
    if module in COMMANDS:
        return "a command"
    if module in CORE:
        return "core"
    if module in FOUNDATIONS:
        return "foundations"
    parts = module.split(".")
    return next((room for n in range(len(parts), 1, -1)
                 if (room := ".".join(parts[:n])) in ARROWS), None)


def imports_of(path, module):
    """Yields line, name of each module that a file imports, inside of functions too."""
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    parts = package.split(".")
    with open(path, encoding="utf-8") as f:
        tree = ast.parse(f.read(), path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parts[:len(parts) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for name in node.names:  # a name may be a module of the package or something in it
                inner = f"{source}.{name.name}"
                yield node.lineno, inner if is_module(inner) else source


def is_module(name):
    path = os.path.join(ROOT, *name.split("."))
    return os.path.exists(path + ".py") or os.path.exists(os.path.join(path, "__init__.py"))


def modules():
    """Yields path and dotted name of each module at the top and in the package."""
    for folder, folders, files in os.walk(ROOT):
        if folder == ROOT:
            folders[:] = ["ssr"]
        for name in sorted(files):
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                dotted = os.path.relpath(path, ROOT)[:-3].replace(os.sep, ".")
                yield path, dotted[:-9] if dotted.endswith(".__init__") else dotted


def wrong_arrows(path, module):
    """A line for each import that points back."""
    room = room_of(module)
    for line, name in imports_of(path, module):
        target = room_of(name)
        place = f"{os.path.relpath(path, ROOT)}:{line}"
        if room == "ssr.api" and name in COMMANDS_OF_API:
            continue
        if target == "a command":
            yield f"{place} imports the command {name}"
        elif room != "a command" and target not in {None, room} and target not in ARROWS[room]:
            yield f"{place}: {room} imports {name}"
        elif name.split(".")[0] == "paddle" and not may_import_paddle(module, name):
            yield f"{place} imports {name} past ssr.runtime"


def may_import_paddle(module, name):
    """The parameter server's parts are not there until somebody imports them by name."""
    return module == "ssr.runtime" or \
        room_of(module) == "ssr.cluster" and name.startswith("paddle.distributed")


def test_arrows_go_one_way():
    assert not [arrow for path, module in modules() for arrow in wrong_arrows(path, module)]


def test_an_arrow_that_points_back_is_noticed(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("from nets import GrnnEncoder\n"
                    "def f():\n    import train\n    from ssr import retrieval\n    import paddle\n"
                    "    from . import gru\n    from ..training import losses\n")
    assert len(list(wrong_arrows(str(file), "ssr.kernels.x"))) == 5


def test_every_module_has_a_room():
    assert not [module for _, module in modules() if room_of(module) is None]


def test_files_are_short_enough_to_read():
    lengths = {}
    for path, module in modules():
        with open(path, encoding="utf-8") as f:
            lengths[module] = sum(1 for _ in f)
    assert not {module: lines for module, lines in lengths.items()
                if lines >= (400 if module.startswith("ssr") else 350)}


def run(code):
    environment = {**os.environ, "PYTHONPATH": ROOT}
    environment.pop("OMP_NUM_THREADS", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_importing_the_package_does_nothing_to_the_process():
    run("""if True:
        import logging, os, signal, sys
        def state():
            return (dict(os.environ), [signal.getsignal(s) for s in signal.valid_signals()],
                    sys.excepthook, sys.path[:], sys.warnoptions[:],
                    logging.getLogger().handlers[:], logging.getLogger().level)
        before = state()
        import ssr, ssr.commands, ssr.errors, ssr.files
        assert state() == before
        assert not {"numpy", "paddle"} & set(sys.modules)""")


@pytest.mark.parametrize("module", [
    "ssr.errors", "ssr.files", "ssr.commands", "ssr.news", "ssr.news.stream", "ssr.news.baselines",
    "ssr.preparation", "ssr.preparation.text", "ssr.preparation.sample", "utils",
    "ssr.retrieval.index", "ssr.retrieval.building", "ssr.retrieval.checking", "ssr.service.app"])
def test_loads_no_paddle(module):
    run(f"import sys, {module}; assert 'paddle' not in sys.modules")
