"""Server of the annotation tool: a task queue and a mask store in SQLite, an HTTP API and a web page.

database.py            SQLite tables and transactions
task_queue.py          assigns tasks to annotators by leases; review and correction
mask_store.py          stores masks; each change is one idempotent request
summary.py             annotation cost, inter-annotator agreement, quality of proposed masks
image_cache.py         images of the source by key
embedding_service.py   image embeddings computed in advance, mask decoding, decoder export to ONNX for the page
access.py              access tokens of users
middleware.py          limit of the request size, security headers
request_models.py      request bodies
app_context.py         objects that the routes share; authentication of a request
api.py                 routes of the JSON API
app.py                 the FastAPI application
shard_export.py        export of finished images as SA-1B shards
client.py              HTTP client for programs
simulated_client.py    simulated annotator that uses this client
../static/             the page; ort/ is onnxruntime-web as published

An image has `overlap` tasks, one for each annotator who annotates it. A task has at most one annotator at a time, and its masks.
"""

__all__: list[str] = []  # modules are imported by name: most need the extra annotate
