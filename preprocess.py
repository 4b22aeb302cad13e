"""A log of clicks, or sessions with raw ids -> what train.py and infer.py read.

    python preprocess.py clicks --input yoochoose-clicks.dat --output_dir data
    python preprocess.py clicks --input clicks.csv --output_dir data
    python preprocess.py sessions --train_files train.txt --test_files test.txt --output_dir data
    python preprocess.py clicks ... --items_path items.tsv     # or, of a table, --text_column Title
    python preprocess.py mind --behaviors behaviors.tsv --news news.tsv --output_dir data
    python preprocess.py adressa --input one_week --output_dir data
    python preprocess.py g1 --input clicks --articles articles_metadata.csv --output_dir data
    python train.py --data_dir data                            # as all that reads the output

`clicks` filters and splits as the preprocessing of RSC15 in GRU4Rec's code does
(examples/rsc15/preprocess.py; Hidasi et al., ICLR 2016, arXiv:1511.06939):

1. drop sessions of one click, items with fewer than 5 clicks, then sessions of one click again;
2. test is the sessions whose last click is at most a day older than the newest click of all;
   with --valid_days the same rule then cuts the validation set off what is left;
3. drop validation and test clicks on items that training does not have (--keep_unknown keeps
   them: news needs that), then validation and test sessions of one click.

Clicks are in order of time within a session, sessions in order of their first clicks, ties in
file order. `sessions` changes nothing but the ids: every line stays, where it was.

`adressa` and `g1` make clicks of public data sets, which go the same way and keep their times.
`mind` makes a session of each user and part, the history and then the clicks, and keeps all of it:
ssr/preparation/from_impressions.py. It also writes what users were shown, for infer.py
--impressions.

Each command writes to the output directory

    train_data/sessions.txt, test_data/sessions.txt and, when asked for, valid_data/sessions.txt:
                 a session a line, item ids 0..V-1 with a space between
    train_times/sessions.txt and so on, with --keep_times or --train_times, --test_times: of the
                 same shape, the time of each click in place of its item, in whole seconds
    train_impressions/impressions.txt and so on, from mind: a line for each list that was shown: its
                 time, a tab, the items that the user had clicked before, a tab, the items that were
                 shown, each with -1 behind it if it was clicked and -0 if not: 7-0 12-1 5-0
    vocab.txt    V
    items.txt    line i, from 0 on, is the raw id of item i, then a tab and its text if it has one

and where items have text or fields (ssr/preparation/text.py says what a token is)

    item_tokens.txt  line i is the token ids of item i, with a space between
    tokens.txt       line i, from 0 on, is token i
    tokens.json      how Chinese was cut

and data.json, in the end, which says what there is and holds a digest of each file.

Ids are given in order of first appearance in train, then valid, then test: items that training
does not have come last, and behind them, with --all_items, those that occur in no session. With
--continue_from the items of an earlier output directory keep their ids and all others come behind
them; its tokens.txt stays as it is. For that, the test part may be left out (--test_days 0).
"""

from __future__ import annotations

import argparse
import sys

from ssr.commands import Parser, run

from ssr.data_directory import PARTS
from ssr.preparation import flags
from ssr.preparation.adressa import read_adressa
from ssr.preparation.click_log import Columns, open_table, open_yoochoose
from ssr.preparation.filtering import Rules
from ssr.preparation.from_clicks import prepare_clicks
from ssr.preparation.from_impressions import prepare_impressions
from ssr.preparation.from_sessions import prepare_sessions
from ssr.preparation.g1 import open_g1, read_articles, read_embeddings
from ssr.preparation.mind import read_news
from ssr.preparation.numbering import NO_EARLIER_RUN, read_earlier_run
from ssr.preparation.writing import Catalogue, TextSettings

# --- flags ----------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = Parser(__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_subparsers(dest="command", required=True)
    clicks = parser.add_command("clicks", run_clicks, "from a log of clicks")
    flags.add_click_flags(clicks.add_argument)
    sessions = parser.add_command("sessions", run_sessions, "from files of a session a line")
    flags.add_session_flags(sessions.add_argument)
    mind = parser.add_command("mind", run_mind, "from logs of impressions, as those of MIND")
    flags.add_mind_flags(mind.add_argument)
    adressa = parser.add_command("adressa", run_adressa, "from the page views of Adressa")
    flags.add_adressa_flags(adressa.add_argument)
    g1 = parser.add_command("g1", run_g1, "from the clicks of G1, Globo.com's data set")
    flags.add_g1_flags(g1.add_argument)
    args = parser.parse(argv)
    check = {"clicks": flags.check_click_flags, "sessions": flags.check_session_flags,
             "mind": flags.check_mind_flags, "g1": flags.check_g1_flags}.get(args.command)
    if check:
        check(args, parser.subparsers.choices[args.command].error)
    return args


# --- the commands ---------------------------------------------------------------------------------


def run_clicks(args):
    written = prepare(args, open_log(args, args.input), on_stage=print_stage)
    print_written(args.output_dir, written)
    return 0


def open_log(args, path):
    """The log of clicks in a file."""
    if args.layout == "yoochoose":
        return open_yoochoose(path)
    return open_table(path, columns_of(args), args.separator)


def columns_of(args):
    return Columns(args.session_column, args.item_column, args.time_column)


def prepare(args, log, valid=None, on_stage=lambda stage: None):
    """Writes --output_dir as the flags say, from a log. valid: a log of its own for validation, or
    None. Returns what prepare_clicks does."""
    settings = text_settings(args, items_path=args.items_path, text_column=args.text_column,
                             field_columns=args.field_columns)
    return prepare_clicks(
        log, args.output_dir, rules_of(args), settings, valid=valid, keep_times=args.keep_times,
        earlier=earlier_run(args), on_stage=on_stage)


def rules_of(args):
    return Rules(args.min_session_length, args.min_item_support, args.test_days, args.valid_days,
                 args.keep_unknown)


def run_sessions(args):
    files, times = ({part: getattr(args, f"{part}_{kind}") for part in PARTS
                     if getattr(args, f"{part}_{kind}")} for kind in ("files", "times"))
    written = prepare_sessions(files, times, args.output_dir,
                               text_settings(args, items_path=args.items_path),
                               earlier=earlier_run(args), on_stage=print_stage)
    print_written(args.output_dir, written)
    return 0


def run_mind(args):
    logs = {"train": args.behaviors, "valid": args.valid_behaviors, "test": args.test_behaviors}
    days = {part: getattr(args, f"{part}_days") for part in ("valid", "test")
            if not logs[part] and getattr(args, f"{part}_days")}
    news = Catalogue(", ".join(args.news), read_news(args.news))
    prepared = prepare_impressions(
        {part: paths for part, paths in logs.items() if paths}, days, args.output_dir,
        text_settings(args, catalogue=news), inputs=args.news, earlier=earlier_run(args),
        on_stage=print_stage)
    for part, impressions in prepared.impressions.items():
        print(f"{part}: {impressions:,} impressions")
    print_written(args.output_dir, prepared.written)
    return 0


def run_adressa(args):
    return run_layout(args, *read_adressa(args.input, args.session_gap))


def run_g1(args):
    vectors = read_embeddings(args.embeddings) if args.embeddings else None
    return run_layout(args, open_g1(args.input),
                      read_articles(args.articles) if args.articles else None, vectors)


def run_layout(args, log, catalogue, vectors=None):
    """Writes --output_dir from the log of a public data set, the text and the vectors of its
    items."""
    settings = text_settings(args, catalogue=catalogue, vectors=vectors)
    written = prepare_clicks(log, args.output_dir, rules_of(args), settings, keep_times=True,
                             earlier=earlier_run(args), on_stage=print_stage)
    print_written(args.output_dir, written)
    return 0


def earlier_run(args):
    return read_earlier_run(args.continue_from) if args.continue_from else NO_EARLIER_RUN


def text_settings(args, **source):
    """source: where the text of the items comes from, fields of TextSettings"""
    return TextSettings(min_token_count=args.min_token_count, chinese_cutter=args.chinese_cutter,
                        all_items=args.all_items, **source)


def print_stage(stage):
    print(f"{stage.name:32}{stage.clicks:>14,} clicks {stage.sessions:>13,} sessions "
          f"{stage.items:>11,} items", flush=True)


def print_written(output_dir, written):
    coverage, tokens = written.coverage, written.tokens
    if coverage:
        print(f"text: {coverage.with_text:,} of {coverage.items:,} items of the sessions have "
              f"some; {coverage.outside:,} items with text occur in no session, they "
              + ("come last" if coverage.outside_kept else
                 "are left out (--all_items takes them)"))
    if tokens:
        print(f"tokens: {tokens.tokens:,} in tokens.txt, {tokens.per_item:.1f} an item; "
              f"{tokens.without:,} items without any; Chinese is cut by {tokens.chinese_cutter}")
    print(f"{output_dir}: {written.items:,} items in vocab.txt and items.txt")


def main(argv=None):
    args = parse_args(argv)
    return run(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
