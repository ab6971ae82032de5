"""The bridge: llama.cpp behind a Unix socket, as a line protocol for people and a binary one for programs."""
