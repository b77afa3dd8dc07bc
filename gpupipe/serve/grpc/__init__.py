"""The server over gRPC: `gpupipe.v1.Avatar`, and for its clients the Go server's `monolithic.MonolithicService`.

    server      what listens: services, tokens, health checking, reflection
    avatar      speech in, pictures out
    hearing     what a client sends of a speech, checked
    monolithic  the Go server's six methods
    handlers    a service's methods, by its descriptor; what is counted, and told of errors (`statuses`)

`*_pb2.py` are made of the `.proto` files by `make protos`.
"""
