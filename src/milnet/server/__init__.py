"""`milnet serve`: a page and an HTTP API over one model process.

    running.py     uvicorn with our signals and time limits
    guard.py       who may ask what: host, origin, token, headers
    api.py         the routes
    answers.py     what they answer, for OpenAPI
    problems.py    errors as problem+json
    uploads.py     bodies -> photos, in memory, within limits
    engine.py      photos -> scores: batches from many requests
    memory.py      what the backbones made of photos sent before
    decoders.py    child processes that decode, and may die
    child.py       what runs in them
    lessons.py     tastes that are taught here
    gauges.py      figures for Prometheus

A photo's way: uploads -> engine -> decoders -> engine (batch, forward, judge) -> api. The page is in `web/`.
"""
