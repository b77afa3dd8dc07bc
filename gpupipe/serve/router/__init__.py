"""Many servers behind one: a process that sends each session to the replica that holds its character and has room.

It draws nothing, and keeps nothing of what goes through it but a sound that is uploaded, on the disk, so that it can be
sent to another replica if one has no room.

    pick      in which turn replicas are tried: a pure function
    board     what the router knows of its replicas, which it asks every second
    replica   one of them: where it is, how it is, what is sent to it
    upstream  one HTTP request to a replica
    relay     what goes through: a request as it is sent on, an answer as it comes
    web, rpc  HTTP and gRPC: which request goes where
    kept      replicas that the router has started, and starts again
    local     those that are processes of this machine; other rooms may have others
    process   a server as a process of its own
    route     the router as a whole, and its end

`python -m gpupipe.serve.router CORES …` is one such process: a server that ends with whoever has started it.
"""
