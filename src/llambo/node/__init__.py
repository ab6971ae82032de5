"""The isolate: one process, one engine. `zygote` forks nodes, `main` is what a node does, `spec` what it is told."""
