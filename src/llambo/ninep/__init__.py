"""9P2000 (Styx): a file protocol as a library. Serves trees of nodes, and reads those of others.

    messages, wire, frames    what is said, its bytes, and where one message ends     pure
    requests, rules, session  the server's side of one connection                     pure
    tree                      what an application gives to be served                  pure
    files, streams            ready-made nodes
    server, connection        listeners, and one client each

    client_session, calls     the client's side of one connection, and what is done   pure
    client, blocking          the same for coroutines and for threads

Knows nothing of clusters: imports only `llambo.core` and the standard library. The protocol is section 5 of the Plan 9
Programmer's Manual. A server in six lines:

    root = StaticDirectory("/", [
        TextFile("status", lambda: "state ready\\n"),
        ControlFile("ctl", run_one_line),           # plain or a coroutine; raises what becomes the Rerror
        StreamFile("events", broadcast.open),       # reads wait; a flush cancels them
    ])
    async with FileServer(lambda uname, aname, peer: root) as server:
        await server.listen("unix!/tmp/x")
"""
