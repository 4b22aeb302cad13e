"""Measurements for Prometheus."""

from __future__ import annotations

import time

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
METHODS = ("GET", "PUT", "POST", "DELETE")
BUCKETS = (.0005, .001, .002, .003, .005, .0075, .01, .015, .025, .05, .1, .25, 1, 5)  # seconds


def make_registry():
    """A registry with what is known about the process."""
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    return registry


def observe_index(registry, backend):
    """Adds what is known about the index of a backend.Backend."""
    observe(registry, "ssr_items", "Items that are known, removed ones too",
            lambda: backend.index.size()[0])
    observe(registry, "ssr_candidates", "Items that can be recommended",
            lambda: backend.index.size()[1])
    registry.register(_Model(backend))
    if backend.index.is_live:
        observe(registry, "ssr_click_backlog", "Clicks that are not on the disk yet",
                lambda: backend.index.click_backlog())
        observe(registry, "ssr_clicks_ahead_total", "Clicks whose time was ahead of the clock",
                lambda: backend.index.clicks_ahead)


class _Model:
    """Which model answers: a label, as Prometheus keeps texts."""

    def __init__(self, backend):
        self._backend = backend

    def collect(self):
        family = GaugeMetricFamily("ssr_model", "1 for the model that answers", labels=["model"])
        family.add_metric([self._backend.model], 1)
        return [family]


def observe(registry, name, description, value):
    """Adds a gauge, or a counter if the name ends in _total. value: called for the number whenever
    the metrics are asked for"""
    registry.register(_Observed(name, description, value))


class _Observed:
    """A number that is kept elsewhere."""

    def __init__(self, name, description, value):
        family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        self.collect = lambda: [family(name, description, value=value())]


def exposition(registry):
    """The metrics in Prometheus' text format, bytes."""
    return prometheus_client.generate_latest(registry)


def exposition_of_all(texts):
    """Those of several processes as one, each sample with the label `worker`. texts: {number of a
    process: its exposition, bytes}"""
    families = {}
    for number, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            whole = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type))
            whole.samples += [sample._replace(labels={**sample.labels, "worker": str(number)})
                              for sample in family.samples]
    return prometheus_client.generate_latest(_Families(families.values()))


class _Families:
    """What a registry is to generate_latest."""

    def __init__(self, families):
        self.collect = lambda: families


def is_of_the_group(scope):
    """Whether a request comes from another process of this server: that one counts it."""
    return scope.get("client") is None


class MeasuredRequests:
    """Counts and times requests, by route rather than by path: there are as many paths as items."""

    def __init__(self, app, registry):
        self.app = app
        self.requests = prometheus_client.Counter(
            "ssr_requests", "Requests answered", ["method", "route", "status"], registry=registry)
        self.seconds = prometheus_client.Histogram(
            "ssr_request_seconds", "Time from the request to the end of the answer",
            ["method", "route"], registry=registry, buckets=BUCKETS)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or is_of_the_group(scope):
            return await self.app(scope, receive, send)
        begin, status = time.perf_counter(), 500

        async def send_and_note(message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            # No label holds what strangers may choose freely.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.requests.labels(method, route, status).inc()
            self.seconds.labels(method, route).observe(time.perf_counter() - begin)
