"""The cluster as a file tree: every file of it, over `cluster.door.Door` and `cluster.control.Control`, on `ninep`.

    grammar, ctls       what a ctl understands: tables, and how lines are read, written, explained and completed   pure
    render              the texts of files                                                                         pure
    answer, session     one answer and its readers; a conversation
    commands            performs the lines of ctl
    node_files, model_files, session_files, pulls          the directories
    view, access        the tree that one client sees, and which client may see what
    server              all of it together: what a listener attaches to

Decides nothing of the cluster's: what a command means is `Control`'s business.
"""
