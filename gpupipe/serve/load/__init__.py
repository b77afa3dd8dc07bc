"""Many clients at a time, to see how many a server holds: talks in real time, over gRPC or without a network.

    talker   one client: sound as it would be spoken, answers and when they came
    crowd    clients at a time, and what became of them together
    served   what serves them: a hub in this process, or a server
    search   the most of them that are served in time
    process  a server of its own, on free ports
    soak     clients that come and go, break off, and send what is no message

`python -m gpupipe.serve.load` runs it (`cli.load`), beside what people do without a server (`bench.alone`).
"""
