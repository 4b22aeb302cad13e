"""Mixed traffic on the service, for Locust: readers who click through sessions and an editor who
publishes and removes articles.

    pip install locust
    SSR_TOKEN=secret locust -f examples/load.py --headless -u 50 -r 10 -t 60s -H http://127.0.0.1:8000

Without --headless it has a page of its own at http://localhost:8089. The readers' clicks go to a
live index; one that is not live only answers. The editor's articles are removed again, and come
with SSR_TOKEN, which the service asks for.
"""

from __future__ import annotations

import os
import random
import uuid

from locust import HttpUser, between, task

TOKEN = os.environ.get("SSR_TOKEN", "")
TITLES = ["Commuters defend the motorway", "Coach praises the young team", "Banks expect a cut"]


class Visitor(HttpUser):
    """Knows what there is to read, and whether the index takes clicks in."""

    abstract = True

    def on_start(self):
        self.client.headers["Authorization"] = f"Bearer {TOKEN}"
        about = self.client.get("/healthz").json()
        self.is_live, self.takes_fresh = about["live"], about["takes_fresh"]
        listing = self.client.get("/items", params={"limit": min(100, about["max_k"])},
                                  name="/items?limit=").json()
        self.articles = [item["id"] for item in listing["items"]]


class Reader(Visitor):
    """Clicks an article, is shown others and clicks one of those, some five times a session."""

    weight = 20
    wait_time = between(0.5, 2)

    def on_start(self):
        super().on_start()
        self.begin()

    def begin(self):
        """Another reader comes."""
        self.name, self.session = uuid.uuid4().hex, []
        self.read(random.choice(self.articles))

    def read(self, article):
        self.session.append(article)
        if self.is_live:
            self.client.post("/clicks", json={"session": self.name, "item": article})

    @task(10)
    def go_on(self):
        answer = self.client.post("/recommend", json={"session": self.session, "k": 10}).json()
        hits = answer["hits"]
        if not hits or random.random() < 0.2:
            return self.begin()
        # Readers look at the top of a list.
        return self.read(hits[min(int(random.expovariate(0.5)), len(hits) - 1)]["id"])

    @task(2)
    def look_for_similar(self):
        self.client.post("/similar", json={"item": self.session[-1], "k": 5})


class Editor(Visitor):
    """Publishes an article and removes it later; without a model of content, takes one that there
    is off and puts it back."""

    weight = 1
    wait_time = between(1, 3)

    @task
    def publish_and_remove(self):
        article = f"load-{uuid.uuid4().hex[:12]}" if self.takes_fresh \
            else random.choice(self.articles)
        content = {"text": random.choice(TITLES), "fields": {"section": "load"}}
        changes = [self.publish, self.remove]
        for change in changes if self.takes_fresh else reversed(changes):
            change(article, content)

    def publish(self, article, content):
        self.client.put(f"/items/{article}", json=content, name="/items/[id]")

    def remove(self, article, _):
        with self.client.delete(f"/items/{article}", name="/items/[id]",
                                catch_response=True) as response:
            if response.status_code == 404:  # another editor was faster
                response.success()
