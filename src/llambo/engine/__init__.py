"""llama.cpp here: what a model file is, whether it fits, where it comes from, how it is opened. Imports only `core`."""
