"""What the commands share: flags that know whether they were given, errors of one line, Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys

from ssr.errors import SetupError, UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that knows which flags were given.

        parser = Parser("what the command does")
        parser.add_argument("--epochs", type=int, default=10, help="number of epochs")
        args = parser.parse()
        args.epochs, args.given             # 10, {}
        parser.parse({"epochs": 3}).given   # {"epochs": 3}

    The help shows the defaults. A usage error is one line. Flags of an argument group would not
    come here: have none.
    """

    def __init__(self, description=None, **options):
        self.defaults = {}  # by destination
        self.subparsers = None
        self.raises = False  # whether a usage error is an exception
        super().__init__(description=description, **options)

    def add_argument(self, *names, default=None, help=None, **options):
        """As of ArgumentParser; in a help text %% stands for a percent sign."""
        if options.get("action") == "store_true":
            default = False
        elif help and default not in (None, [], "", argparse.SUPPRESS):
            shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
            help += f" (default: {str(shown).replace('%', '%%')})"
        action = super().add_argument(*names, default=argparse.SUPPRESS, help=help, **options)
        if action.dest != "help":
            self.defaults[action.dest] = default
            if action.type is data_path and default is not None:
                self.defaults[action.dest] = data_path(default)
        return action

    def add_subparsers(self, **options):
        """As of ArgumentParser. Every command's parser must be made by add_command."""
        self.subparsers = super().add_subparsers(**options)
        return self.subparsers

    def add_command(self, name, run, help):
        """The parser of a command of this one. run: called with the args"""
        command = self.subparsers.add_parser(name, help=help, description=help)
        command.set_defaults(run=run, command_parser=command)
        return command

    def parse(self, argv=None):
        """The flags: those that were given, the defaults of the others, and `given`, a dict of the
        former alone.

        argv: a list of words, None for those that the process was started with; or a dict
            {name: value}, as a caller in Python has them: None stands for a flag that is not given,
            a list for several values. Usage errors are SetupErrors then.
        """
        if isinstance(argv, dict):
            for parser in [self, *(self.subparsers.choices.values() if self.subparsers else [])]:
                parser.raises = True
            argv = self._words(dict(argv))
        given = vars(self.parse_args(argv))
        parser = given.pop("command_parser", self)
        run = {"run": given.pop("run")} if "run" in given else {}
        defaults = {**self.defaults, **parser.defaults}
        return argparse.Namespace(**{**defaults, **given}, **run, given=given)

    def _words(self, values):
        """{name: value} as the words of a command line: one road for what is typed and what is
        called."""
        parser, words = self, []
        if self.subparsers and self.subparsers.dest in values:
            words.append(values.pop(self.subparsers.dest))
            parser = self.subparsers.choices[words[0]]
        actions = {action.dest: action for action in parser._actions}
        for name, value in values.items():
            if name not in actions:
                parser.error(f"there is no --{name}")
            flag = actions[name].option_strings[-1]
            if actions[name].nargs == 0:  # a switch
                words += [flag] if value else []
            elif isinstance(value, (list, tuple)):
                words += [flag, *map(_word, value)] if value else []
            elif value is not None:
                words.append(f"{flag}={_word(value)}")
        return words

    def error(self, message):
        if self.raises:
            raise SetupError(message)
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} -h\n")


def _word(value):
    """A value as one would type it."""
    return str(int(value) if isinstance(value, bool) else value)


def number(kind, low, high=float("inf")):
    """An argparse type: a number of the given kind (int, float) in low..high."""
    limits = f"of {low} or more" if high == float("inf") else f"from {low} to {high}"
    name = f"a {'whole ' if kind is int else ''}number {limits}"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {name}")
        return value
    return parse


def data_path(path):
    """An argparse type: a path. What the sample holds beside its sessions has moved to sample/ and
    is found by its old name as well."""
    moved = os.path.join("sample", path)
    return moved if os.path.exists(moved) and not os.path.exists(path) else path


# --- running --------------------------------------------------------------------------------------


_interrupts = []  # the Ctrl-C that noting_interrupts has seen


@contextlib.contextmanager
def noting_interrupts():
    """Within the block Ctrl-C is a KeyboardInterrupt, and is noted: callbacks from Paddle's C++ may
    swallow that or make something else of it."""
    def note(number, frame):
        _interrupts.append(number)
        signal.default_int_handler(number, frame)

    before = _on_interrupt(note)
    try:
        yield
    finally:
        if before is not None:  # in another thread they are not its own
            _on_interrupt(before)
            _interrupts.clear()


def raise_if_interrupted():
    """Raises the KeyboardInterrupt of a Ctrl-C that was swallowed. For loops that run long."""
    if _interrupts:
        raise KeyboardInterrupt


def run(main):
    """Runs main() as a command and returns its exit code. A UserError is one line on standard error
    and 1, Ctrl-C one line and 130."""
    name = os.path.basename(sys.argv[0])
    with noting_interrupts():
        try:
            code = main()
            if not _interrupts:  # else it was swallowed by a callback from C++
                return code
        except UserError as error:
            if not _interrupts:
                print(f"{name}: error: {error}", file=sys.stderr)
                return 1
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no complaint at exit
            return 1
        except BaseException as error:
            # What a KeyboardInterrupt becomes on its way through Paddle's C++ is anybody's guess.
            if not _interrupts and not isinstance(error, KeyboardInterrupt):
                raise
    print(f"{name}: interrupted", file=sys.stderr)
    return 130


def _on_interrupt(handler):
    """Sets the handler of SIGINT and returns the one before; does nothing outside of the main
    thread, or where SIGINT is ignored."""
    if handler is None or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        return None
    try:
        return signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread
        return None


def _end_at_once(number, frame):
    """Ctrl-C while modules are still being loaded: one line as well. No exception, since what is
    written in C, numpy say, takes a KeyboardInterrupt for a module that is not there."""
    print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


def _is_command():
    """Whether this process runs a file of this project, not somebody else's that imports it."""
    here = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    program = os.path.realpath(getattr(sys.modules["__main__"], "__file__", None) or os.sep)
    return os.path.dirname(program) == here or program.startswith(os.path.join(here, "ssr", ""))


if _is_command():
    _on_interrupt(_end_at_once)


def setup_logging():
    """The lines of the retired scripts' logger, on standard error."""
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(message)s", level=logging.INFO,
                        force=True)  # Paddle has set up the root logger already
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it says how it is being loaded


def be_quiet():
    """Nothing but errors from here on: another process says the same."""
    logging.getLogger().setLevel(logging.ERROR)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  it stays open
