"""The tool that people annotate with: a queue and store in SQLite, a server, and a page.

database.py     the tables, and short transactions on them
queue.py        which task an annotator gets next, how long it is theirs, and what becomes of it
commits.py      masks, one idempotent request each
summary.py      stage one's numbers, agreement of two passes, correction of automatic masks
pictures.py     the source by keys
encoding.py     embeddings of the next images, made ahead; answers of the decoder; the decoder as ONNX for the page
access.py       tokens
guards.py       what no request gets past: size, host, headers
messages.py     what goes over the wire
desk.py         what the server works with, and who asks
api.py          the routes that answer JSON
app.py          the server
finished.py     finished images to SA-1B shards
client.py       the API as a program speaks it
rehearsal.py    a simulated annotator at that client
static/         the page; ort/ is onnxruntime-web as it was published

An image has as many tasks as annotators are to see it (`overlap`); a task has one annotator at a time, and its masks.
"""
