"""The index behind HTTP.

    limits.py     how much of anything a server takes
    messages.py   what requests and answers hold
    guards.py     what every request passes before it reaches a route, and how refusals are told
    backend.py    the index as the routes use it
    routes.py     the routes
    reloading.py  going over to a new build of the index
    metrics.py    measurements for Prometheus
    page.py       the page to try it, page.html
    app.py        all of this as one ASGI application
    server.py     the process: sockets, connections, signals
    group.py      what several processes of one server share
    workers.py    the process that starts them, and starts again those that die
    forwarding.py changes that come to one which does not write
"""
