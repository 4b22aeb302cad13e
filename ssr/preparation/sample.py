"""Makes sessions whose next click can be learned: the sample of this project, or a large one.

    python -m ssr.preparation.sample --content_dir sample --clicks_path sample/clicks.csv
        # what is committed, byte by byte
    python -m ssr.preparation.sample --output_dir /tmp/large --num_items 100000 \\
        --train_sessions 1000000

A reader has a topic, and now and then turns to another one. The next click is an article that
follows the last one, an earlier one again, or a popular one of the topic. The headline of an
article holds words of its topic. In the table of clicks new articles come every day, and the newest
are clicked most. Nobody's data is in it.
"""

from __future__ import annotations

import csv
import os
import sys

from ssr.commands import Parser, number, run

import numpy as np

from ssr.errors import SetupError
from ssr.preparation import text

# What the articles of each topic are about: topic, who, what; who and what once more in Chinese.
TOPICS = [line.split("|") for line in """
economy|bankers, exporters, shareholders|inflation, interest rates, the budget|央行|利率
elections|candidates, voters, campaigners|the ballot, opinion polls, a debate|选民|投票
football|strikers, goalkeepers, fans|a penalty, the cup final, a transfer|球迷|足球
tennis|finalists, umpires, doubles partners|a tie-break, grass courts, the seedings|选手|网球
cinema|directors, actors, film critics|a premiere, the box office, a sequel|导演|电影
music|singers, orchestras, pianists|a concert tour, the album, the charts|歌手|专辑
health|doctors, nurses, patients|a vaccine, hospital beds, the flu season|医生|疫苗
climate|glaciologists, activists, negotiators|emissions, the heat record, sea levels|专家|气候
space|astronauts, engineers, astronomers|the moon landing, a rocket launch, Mars|宇航员|火箭
science|physicists, chemists, laboratories|an experiment, the Nobel prize, a discovery|科学家|实验
travel|tourists, airlines, hotel owners|holiday flights, the beaches, visa rules|游客|航班
food|chefs, bakers, farmers|a recipe, the harvest, bread prices|厨师|美食
books|novelists, publishers, readers|a bestseller, the new novel, a memoir|作家|小说
theatre|playwrights, stage actors, ushers|opening night, a tragedy, the rehearsals|剧团|话剧
schools|teachers, pupils, parents|exams, the school holidays, homework|教师|考试
traffic|commuters, cyclists, lorry drivers|roadworks, the motorway, a tunnel|司机|公路
weather|forecasters, sailors, mountaineers|the storm, heavy rain, a cold spell|气象局|暴雨
courts|judges, lawyers, witnesses|the verdict, an appeal, a trial|法官|判决
cities|mayors, architects, tenants|rents, a new bridge, the old town|市长|房租
energy|grid operators, miners, utilities|wind farms, electricity bills, a pipeline|电网|电价
""".strip().splitlines()]
VERBS = ("argue over", "are divided on", "await", "comment on", "defend", "discuss", "look back at",
         "question", "turn to", "warn about", "welcome", "worry about")
CHINESE_VERBS = ("讨论", "关注", "欢迎", "担忧")
CHINESE_EVERY = 12  # a headline in Chinese every so many articles of a topic
REPEAT, FOLLOW, SWITCH = 0.10, 0.55, 0.05  # probabilities of a click; the rest goes by popularity
FOLLOWERS = 3  # articles that often come after a given one
MEAN_LENGTH, MAX_LENGTH = 6, 50
NEWS_SESSIONS, NEWS_ARTICLES = 100, 240  # a day, of the table of clicks; one article more a topic
ONE_CLICK_EVERY = 6
FIRST_DAY, DAYS = 1_700_006_400, 5  # 15 November 2023, 00:00 UTC; the last day is the test's


def make_sessions(num_sessions, num_items, seed):
    """Sessions of 2 to MAX_LENGTH clicks.

    Returns items <int32>[clicks], ids 0..num_items-1, all sessions end to end, and offsets
    <int64>[num_sessions + 1]. Time and memory grow with the clicks, not with num_items.
    """
    random = np.random.default_rng(seed)
    num_topics = min(len(TOPICS), num_items)
    lengths = np.minimum(1 + random.geometric(1 / (MEAN_LENGTH - 1), num_sessions), MAX_LENGTH)
    offsets = np.zeros(num_sessions + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    items = np.empty(offsets[-1], np.int32)
    topic = random.integers(0, num_topics, num_sessions)
    active = np.arange(num_sessions)
    for step in range(int(lengths.max(initial=0))):
        active = active[lengths[active] > step]
        at = offsets[active] + step
        switch = random.random(len(active)) < SWITCH
        topic[active[switch]] = random.integers(0, num_topics, int(switch.sum()))
        clicked = _popular(random, topic[active], num_items, num_topics)
        if step:
            kind = random.random(len(active))
            follow = (kind < FOLLOW) & ~switch
            clicked[follow] = _follower(random, items[at[follow] - 1], num_items, num_topics)
            repeat = kind > 1 - REPEAT
            back = random.integers(1, step + 1, int(repeat.sum()))
            clicked[repeat] = items[at[repeat] - back]
        items[at] = clicked
    return items, offsets


def _popular(random, topic, num_items, num_topics):
    """Topic t owns the items t, t + num_topics, ...; of n the k-th is drawn about as 1 / k."""
    owned = (num_items - 1 - topic) // num_topics + 1
    place = np.minimum(owned ** random.random(len(topic)), owned) - 1
    return topic + num_topics * place.astype(np.int64)


def _follower(random, item, num_items, num_topics):
    """One of the few articles of the same topic that a given article leads to."""
    topic = item % num_topics
    owned = (num_items - 1 - topic) // num_topics + 1
    jump = 1 + random.integers(0, FOLLOWERS, len(item))
    return topic + num_topics * ((item // num_topics + jump ** 2) % owned)


def write_sessions(path, items, offsets):
    """A session a line, ids with a blank between."""
    ids = items.astype(str)
    with _create(path) as f:
        for begin, end in zip(offsets[:-1], offsets[1:]):
            f.write(" ".join(ids[begin:end]) + "\n")


def _create(path, mode="w"):
    """A file open for writing, UTF-8 with line feeds on every system, in a directory that is made
    where needed."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    text_mode = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    return open(path, mode, **text_mode)


def make_times(offsets, seed):
    """When each click was, in seconds since 1970: sessions begin one after the other, evenly over
    DAYS, and read each article for 10 to 90 seconds. <int64>[clicks]"""
    random = np.random.default_rng([seed, 2])
    lengths = np.diff(offsets)
    begin = FIRST_DAY + np.arange(len(lengths)) * DAYS * 86_400 // len(lengths)
    spent = np.cumsum(random.integers(10, 91, offsets[-1]))
    return np.repeat(begin - spent[offsets[:-1]], lengths) + spent


def make_headlines(num_items, seed):
    """A headline an item, about its topic: <str>[num_items]. Few of them are in Chinese."""
    random = np.random.default_rng([seed, 1])  # the sessions draw from another one
    draws = random.random((num_items, 3)).tolist()
    return [_headline(item, draw) for item, draw in enumerate(draws)]


def _headline(item, draw):
    place, topic = divmod(item, len(TOPICS))
    _, people, matters, chinese_people, chinese_matter = TOPICS[topic]
    if place % CHINESE_EVERY == CHINESE_EVERY - 1:
        return chinese_people + _choose(CHINESE_VERBS, draw[1]) + chinese_matter
    headline = " ".join([_choose(people.split(", "), draw[0]), _choose(VERBS, draw[1]),
                         _choose(matters.split(", "), draw[2])])
    return headline[0].upper() + headline[1:]


def _choose(choices, draw):
    return choices[int(draw * len(choices))]


def write_sample(output_dir, num_items, train_sessions, test_sessions, seed, content_dir=None,
                 valid_sessions=0):
    """Writes a sample.

    output_dir: for train_data/, test_data/ and vocab.txt
    content_dir: for the times of the clicks in train_times/ and test_times/, valid_data/, items.txt
        and the tokens of the headlines; None for output_dir
    valid_sessions: how many valid_data/ gets; the other files do not depend on it
    """
    content_dir = content_dir or output_dir
    items, offsets = make_sessions(train_sessions + test_sessions, num_items, seed)
    for directory, kind, values in ((output_dir, "data", items),
                                    (content_dir, "times", make_times(offsets, seed))):
        write_sessions(os.path.join(directory, f"train_{kind}", "sessions.txt"), values,
                       offsets[:train_sessions + 1])
        write_sessions(os.path.join(directory, f"test_{kind}", "sessions.txt"), values,
                       offsets[train_sessions:])
    if valid_sessions:
        write_sessions(os.path.join(content_dir, "valid_data", "sessions.txt"),
                       *make_sessions(valid_sessions, num_items, [seed, 3]))
    with _create(os.path.join(output_dir, "vocab.txt")) as f:
        f.write(f"{num_items}\n")
    headlines = make_headlines(num_items, seed)
    with _create(os.path.join(content_dir, "items.txt")) as f:
        f.writelines(f"{raw_id(item)}\t{headline}\n" for item, headline in enumerate(headlines))
    in_training = np.bincount(items[:offsets[train_sessions]], minlength=num_items) > 0
    # The same files on every machine, whether jieba is there or not.
    bags = text.make_bags(map(text.ItemText, headlines), in_training, 2, text.Tokenizer("bigrams"))
    bags.write(lambda name: _create(os.path.join(content_dir, name), "wb"))


def make_news(seed):
    """Sessions of DAYS, of the same number each day, in which old articles give way to new ones.

    Returns items and offsets as make_sessions does, but some sessions are one click.
    """
    sessions = []
    for day in range(DAYS):
        items, offsets = make_sessions(NEWS_SESSIONS, NEWS_ARTICLES, [seed, 4, day])
        # The lowest ids are clicked most: they become the newest articles.
        newest = NEWS_ARTICLES + day * len(TOPICS) - 1
        sessions += np.split(newest - items, offsets[1:-1])
    sessions = [items[:1] if number % ONE_CLICK_EVERY == 0 else items
                for number, items in enumerate(sessions)]
    return np.concatenate(sessions), np.cumsum([0, *map(len, sessions)])


def write_clicks(path, seed):
    """Writes make_news as a table of clicks in order of time, with the headline of each article."""
    items, offsets = make_news(seed)
    times = make_times(offsets, seed)
    headlines = make_headlines(int(items.max()) + 1, seed)
    sessions = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    with _create(path) as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(["SessionId", "ItemId", "Time", "Title"])
        for click in np.argsort(times, kind="stable"):
            item = items[click]
            time = str(times[click].astype("datetime64[s]")).replace("T", " ")
            table.writerow([f"s{sessions[click]:03d}", raw_id(item), time, headlines[item]])


def raw_id(item):
    return f"n{item:04d}"


# --- the command ----------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = Parser("Sessions to try the commands on")
    add = parser.add_argument
    add("--output_dir", default=".", help="where the sessions are written")
    add("--content_dir", help="where the times of the clicks, the sessions to validate on and the "
        "text of the items are written, if not there as well")
    add("--num_items", type=number(int, 2, 10 ** 8), default=500, help="number of items")
    add("--train_sessions", type=number(int, 1, 10 ** 9), default=800,
        help="sessions to train on")
    add("--test_sessions", type=number(int, 1, 10 ** 9), default=200, help="sessions to test on")
    add("--valid_sessions", type=number(int, 0, 10 ** 9), default=200,
        help="sessions to validate on")
    add("--clicks_path", metavar="FILE.csv", help="also write a table of clicks with times and "
        f"headlines, of {DAYS} days of news; it depends on --seed alone")
    add("--seed", type=number(int, 0, 2 ** 32 - 1), default=1, help="of all that is drawn")
    return parser.parse(argv)


def main(argv=None):
    args = parse_args(argv)

    def command():
        try:
            write_sample(args.output_dir, args.num_items, args.train_sessions, args.test_sessions,
                         args.seed, args.content_dir, args.valid_sessions)
            if args.clicks_path:
                write_clicks(args.clicks_path, args.seed)
        except OSError as error:
            raise SetupError(f"cannot write {error.filename}: {error.strerror}") from error
        return 0
    return run(command)


if __name__ == "__main__":
    sys.exit(main())
