"""Writes what the docs take from the code, so that nothing stands in two places:

    python docs/tables.py            # writes it; `make docs` does this
    python docs/tables.py --check    # exit code 1 if a page is out of date or lacks a translation

docs/flags.md is made from the parsers of the commands. docs/internals.md has, between two marks,
the modules of the package, made from their docstrings. The Chinese pages take their texts from
docs/cn/texts.json; what is not there stays English.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from commandline import COMMANDS, parser_of, subcommands  # noqa: E402

TEXTS = ROOT / "docs" / "cn" / "texts.json"
BEGIN, END = "<!-- modules: made by docs/tables.py -->", "<!-- end of modules -->"


class Translator:
    """English -> Chinese where the catalogue has a text, else English again. Remembers which texts
    were asked for and which of them were missing."""

    def __init__(self, catalogue):
        self.catalogue = catalogue
        self.asked = set()

    def __call__(self, text):
        if text:
            self.asked.add(text)
        return self.catalogue.get(text) or text

    def missing(self):
        return sorted(text for text in self.asked if not self.catalogue.get(text))

    def unused(self):
        return sorted(set(self.catalogue) - self.asked)


def table(header, rows):
    """A table of Markdown. rows: lists of cells"""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


# --- flags ----------------------------------------------------------------------------------------


def code(text):
    return f"`{text}`" if text else ""


def spelling(action):
    """A flag as it is typed: `--user_encoder {gru,bow}`, `--topk K ...`."""
    values = f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.metavar or ""
    more = " ..." if action.nargs in ("+", "*") else ""
    if not action.option_strings:
        return code(values + more)
    names = ", ".join(map(code, action.option_strings[:-1]))
    last = code(f"{action.option_strings[-1]} {values}{more if values else ''}".strip())
    return ", ".join(filter(None, [names, last]))


def flags_of(parser):
    """Yields spelling, default, help and value in the strong recipe of each flag."""
    actions = [action for action in parser._actions if action.dest != "help"
               and not isinstance(action, argparse._SubParsersAction)]
    strong = next((action.choices["strong"] for action in actions if action.dest == "recipe"), {})
    for action in actions:
        text, default = re.fullmatch(r"(.*?)(?: ?\(default: (.*)\))?", action.help or "",
                                     re.S).groups()
        phrase = " " in (default or "") and not action.choices
        yield (spelling(action), default if phrase else code(default or ""),
               text.replace("%%", "%"), code(str(strong.get(action.dest, ""))))


def name_of(flag):
    """`--topk` of `--topk K ...`"""
    return code(flag.strip("`").split()[0].rstrip("`,"))


def commands():
    """Yields name, description and flags of each command that has flags."""
    for command in COMMANDS:
        parser = parser_of(command)
        names = subcommands(parser)
        if not names:
            yield command, parser.description, list(flags_of(parser))
        for name in names:
            child = next(action for action in parser._actions
                         if isinstance(action, argparse._SubParsersAction)).choices[name]
            yield f"{command} {name}", child.description, list(flags_of(child))


def flags_page(_, top, other):
    """docs/flags.md. _: translates; top, other: links to the README and to the other language"""
    parts = [f"# {_('Flags')}", f"{top} · {other}",
             _("Made from the commands' own help by `make docs`. A flag that means the same in "
               "several commands is described at the first of them.")]
    first = {}  # spelling, default, help -> the command that describes it
    for command, description, flags in commands():
        rows = [flag for flag in flags if flag[:3] not in first]
        shared = {}
        for flag in flags:
            if flag in rows:
                first[flag[:3]] = command
            else:
                shared.setdefault(first[flag[:3]], []).append(name_of(flag[0]))
        parts += [f"## {command.replace('-m ', 'python -m ')}", sentence(_(summary(description)))]
        if rows:
            parts.append(flag_table(_, rows))
        if shared:
            parts.append(" ".join(f"{_('As in')} `{origin}`: {', '.join(names)}."
                                  for origin, names in shared.items()))
    return "\n\n".join(parts) + "\n"


def flag_table(_, flags):
    has_strong = any(strong for *__, strong in flags)
    header = ["flag", "default", *(["strong"] if has_strong else []), "meaning"]
    return table([_(name) for name in header],
                 [[spelled, default if default.startswith("`") else _(default),
                   *([strong] if has_strong else []), marked_up(_(text))]
                  for spelled, default, text, strong in flags])


def marked_up(text):
    """A help text in Markdown: flags as code."""
    text = re.sub(r"[|*]", r"\\\g<0>", text)
    return re.sub(r"(?<![\w`-])--[a-z_]+", r"`\g<0>`", text)


def summary(text):
    """The first line of a description."""
    return text.split("\n")[0].rstrip(".")


def sentence(text):
    return text[0].upper() + text[1:] + ("。" if re.search(r"[\u4e00-\u9fff]$", text) else ".")


# --- modules --------------------------------------------------------------------------------------


def docstring(path):
    """The first sentence of a module's docstring, without the full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"\.(?: |$)", first)[0]


def rooms():
    """Yields name, summary and modules of each room: the package itself first."""
    package = ROOT / "ssr"
    folders = [package, *sorted(path.parent for path in package.glob("*/__init__.py"))]
    for folder in folders:
        modules = [(path.relative_to(ROOT).as_posix(), docstring(path))
                   for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        about = "Foundations" if folder == package else docstring(folder / "__init__.py")
        yield folder.relative_to(ROOT).as_posix(), about, modules


def module_tables(_):
    parts = []
    for name, about, modules in rooms():
        parts += [f"### `{name}/`", sentence(_(about)),
                  table([_("file"), _("what it does")],
                        [[code(path), _(text)] for path, text in modules])]
    return "\n\n".join(parts)


def between_marks(text, inner):
    before, __, rest = text.partition(BEGIN)
    __, __, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{inner}\n\n{END}{after}"


# --- pages ----------------------------------------------------------------------------------------


def pages(translate):
    """{path: text} of all pages that are made here, in whole or in part."""
    def english(text):
        return text

    internals, internals_cn = ROOT / "docs/internals.md", ROOT / "docs/cn/internals.md"
    return {
        ROOT / "docs/flags.md": flags_page(
            english, "[Documentation](../README.md#documentation)", "[中文](cn/flags.md)"),
        ROOT / "docs/cn/flags.md": flags_page(
            translate, "[文档目录](../../README_cn.md#文档)", "[English](../flags.md)"),
        internals: between_marks(internals.read_text(encoding="utf-8"), module_tables(english)),
        internals_cn: between_marks(internals_cn.read_text(encoding="utf-8"),
                                    module_tables(translate)),
    }


def main():
    parser = argparse.ArgumentParser(description="Writes what the docs take from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    translate = Translator(json.loads(TEXTS.read_text(encoding="utf-8")))
    old = 0
    for path, text in pages(translate).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            old += 1
            if check:
                print(f"{path.relative_to(ROOT)} is out of date: make docs")
            else:
                path.write_text(text, encoding="utf-8")
    for text in translate.missing():
        print(f"docs/cn/texts.json lacks: {text!r}")
    for text in translate.unused():
        print(f"docs/cn/texts.json has what nothing uses: {text!r}")
    return int(bool(check and old or translate.missing() or translate.unused()))


if __name__ == "__main__":
    sys.exit(main())
