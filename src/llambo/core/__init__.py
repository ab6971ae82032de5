"""The shared vocabulary: types, errors, configuration, paths, log. Imports nothing else of Llambo."""
