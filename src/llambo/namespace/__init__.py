"""The cluster as a file tree: every file of it, over `cluster.door.Door` and `cluster.control.Control`, on `ninep`.

    grammar, ctls       what a ctl understands: tables, and how lines are read, written and explained   pure
    settings            how answers are wanted: what a ctl sets, and the request that comes of it       pure
    render              the texts of files                                                              pure
    answer, session     one answer and its readers; a conversation
    commands            performs the lines of ctl
    node_files, model_files, session_files, fusion_files, pulls          the directories
    data_file           one question and its answer on one fid
    view                the tree that one client sees
    server              all of it together: what a listener attaches to

Decides nothing of the cluster's: what a command means is `Control`'s business.
"""
