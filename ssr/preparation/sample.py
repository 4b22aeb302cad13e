"""Makes sessions whose next click can be learned: the sample of this project, or a large one.

    python make_sample.py --output_dir .            # what is committed here, byte by byte
    python make_sample.py --output_dir /tmp/large --num_items 100000 --train_sessions 1000000

A reader has a topic, now and then another one. The next click is an article that follows the last
one, an earlier one again, or a popular one of the topic. The headline of an article holds words of
its topic. Nobody's data is in it.
"""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np

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
    os.makedirs(os.path.dirname(path), exist_ok=True)
    ids = items.astype(str)
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        for begin, end in zip(offsets[:-1], offsets[1:]):
            f.write(" ".join(ids[begin:end]) + "\n")


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


def write_sample(output_dir, num_items, train_sessions, test_sessions, seed):
    """Writes train_data/, test_data/, the times of their clicks in train_times/ and test_times/,
    vocab.txt, items.txt and the tokens of the headlines under output_dir."""
    items, offsets = make_sessions(train_sessions + test_sessions, num_items, seed)
    for kind, values in (("data", items), ("times", make_times(offsets, seed))):
        write_sessions(os.path.join(output_dir, f"train_{kind}", "sessions.txt"), values,
                       offsets[:train_sessions + 1])
        write_sessions(os.path.join(output_dir, f"test_{kind}", "sessions.txt"), values,
                       offsets[train_sessions:])
    with open(os.path.join(output_dir, "vocab.txt"), "w", encoding="utf-8", newline="\n") as f:
        f.write(f"{num_items}\n")
    headlines = make_headlines(num_items, seed)
    with open(os.path.join(output_dir, "items.txt"), "w", encoding="utf-8", newline="\n") as f:
        f.writelines(f"n{item:04d}\t{headline}\n" for item, headline in enumerate(headlines))
    counted = np.bincount(items[:offsets[train_sessions]], minlength=num_items) > 0
    # The same files on every machine, whether jieba is there or not.
    bags = text.make_bags(map(text.ItemText, headlines), counted, 2, text.Tokenizer("bigrams"))
    bags.write(lambda name: open(os.path.join(output_dir, name), "wb"))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Sessions to try the scripts on",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output_dir", default=".", help="where the files are written")
    parser.add_argument("--num_items", type=int, default=500)
    parser.add_argument("--train_sessions", type=int, default=800)
    parser.add_argument("--test_sessions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.num_items < 2 or min(args.train_sessions, args.test_sessions) < 1 or args.seed < 0:
        parser.error("at least 2 items and 1 session of each kind are needed, and a seed from 0 on")
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        write_sample(args.output_dir, args.num_items, args.train_sessions, args.test_sessions,
                     args.seed)
    except OSError as error:
        print(f"make_sample.py: error: cannot write {error.filename}: {error.strerror}",
              file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
