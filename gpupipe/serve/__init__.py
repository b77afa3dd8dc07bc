"""Sessions over a network: characters in a folder speak for many clients at a time, over HTTP, WebRTC and gRPC.

Nothing here knows how a frame is drawn: a `Talk` is a live session of an engine. Nor does the middle know a protocol:

    http, webrtc, grpc   one client's request: sound in, answers out, in the event loop
    conversation         a talk as the event loop has it
    delivery             a thread that takes a talk's pictures and encodes them, and the queue to the event loop
    talk                 one speech: when each frame is due, what is late, what ends it
    hub                  characters by name, engines, talks; who may come in (`admission`), and what they cost (`costs`)

The extra `gpupipe[serve]` brings grpcio, Starlette, uvicorn, prometheus-client and aiortc.
"""
