"""Makes the built-in model: corpus, tokenizer, training, GGUF export, checks and evaluation.

Nothing in `src/llambo` imports this package; it only produces `src/llambo/data/built-in.gguf`
and the model card beside it.
"""
