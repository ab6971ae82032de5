"""dish: a small shell for the cluster, whose commands are reads and writes of files over 9P2000.

    grammar       what a line says: words, quotes, pipes, redirections                          pure
    mounts        dish's own namespace: servers mounted beside each other, binds, the current directory
    servers       what can be mounted: servers reached over 9P2000
    local         trees of this process in the place of a server; own: `/n/dish`
    pipes         what runs from one command to the next
    command       what a command is, and the state that all share; commands is the table of them
    file_commands, cluster_commands, asking      what they do
    jobs          commands in the background
    terminal      standard output; wrapping breaks its lines between words
    interpreter   runs lines and scripts
    completion, highlighting, shell      the interactive side, on prompt_toolkit

Knows nothing of clusters: whatever it does to one, it does as a client of its file tree. Who serves that tree, and what
is started where nobody does, is the composition root's business.
"""
