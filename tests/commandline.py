"""Commands as a user types them, for the tests: their parsers, without anything being run."""

import argparse
import functools
import os
import runpy
import sys
from unittest import mock

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMMANDS = [
    "train.py", "infer.py", "preprocess.py", "retrieve.py", "serve.py", "evaluate_stream.py",
    "export.py", "cluster_train.py", "plot_metrics.py", "-m ssr.preparation.sample"]


class Stopped(BaseException):
    """Carries a parser out of its command."""


@functools.cache
def parser_of(command):
    """The ArgumentParser of a command, as "train.py" or "-m ssr.preparation.sample". The command is
    started in this process and stopped when it is about to parse its flags."""
    def parse_args(self, args=None, namespace=None):
        raise Stopped(self)

    if command.startswith("-m "):
        path, start = command[3:], runpy.run_module
    else:
        path, start = os.path.join(ROOT, command), runpy.run_path
    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args), \
            mock.patch.object(sys, "argv", [path]), \
            mock.patch.object(sys, "path", [os.path.dirname(path) or ROOT, *sys.path]):
        try:
            start(path, run_name="__main__")
        except Stopped as stopped:
            return stopped.args[0]
    raise AssertionError(f"{command} parses no flags")


def subcommands(parser):
    """The names of a parser's commands, perhaps none."""
    return [name for action in parser._actions if isinstance(action, argparse._SubParsersAction)
            for name in action.choices]
