"""The cluster behind HTTP: OpenAI's API, Anthropic's messages, llama-server's own endpoints. See docs/gateway.md.

    errors, sse         failures as statuses, envelopes and in-band events; server-sent events as bytes            pure
    bodies              what routing needs of a request's body, and what no engine could take                       pure
    schemas             what the endpoints take and answer, for OpenAPI                                             pure
    fusion, openai      what fusion is asked over HTTP, and its answers as OpenAI's objects                         pure
    messages            what is said over a WebSocket                                                               pure
    rates               how many requests a token may make                                                          pure
    relay               one request to a node and its reply, as raw ASGI
    fused               one request that several nodes answer, and its reply
    streams             streams that their client lost: kept for a while, to be resumed
    inference, models   the endpoints
    looks               health, readiness, metrics
    websocket           many requests over one WebSocket, and the cluster's events
    app                 all of it as one ASGI application
    guard               in front of it: who asks, from which page, how often
    connection          a client's connection and its limits; `websocket_connection` once it is a WebSocket
    shared              what connections share
    listen, server      on which addresses, and uvicorn

Decides nothing of the cluster's: which node answers is `cluster.relay.Relays`'s business.
"""
