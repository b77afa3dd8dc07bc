"""A small client of a server: over gRPC (`rpc`), and over HTTP with the standard library alone (`rest`).

`python -m gpupipe.serve.client` is its command (`cli.client`). It shows how a server is asked, and tries one out.
Nothing is offered from here, so that `rest` needs no gRPC.
"""
