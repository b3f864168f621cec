"""Consumers: other software that runs our exports, each in an environment of its own.

    python -m tests.consumers [--only llama_cpp] [--real FOLDER]     (make consumers)

prints one table, and writes it to `build/consumers/table.md`. What was measured is kept under
`build/consumers/results` and not asked again, so that an interrupted command goes on (`--fresh` asks again),
unless the consumer's file has changed or it gave no answer.

A consumer is one file in this folder that imports nothing of koffkit: `PACKAGES` (what its environment gets),
`FORMAT` and `OPTIONS` (of the export that it reads), and a program

    python CONSUMER.py EXPORT QUESTIONS.json ANSWERS.json

Questions (made by `reference.py`): `asked`, a list of `{"memory", "lora", "kv", "prompt"}` in the order to
ask (memory null: the backbone alone; prompt: token ids), `new_tokens`, `suppress` (ids that are never
chosen) and `top` (how many log-probabilities of each step to tell). Answers: `versions`, and `settings`: by
name of a setting, such as `flash attention`, a list as long as `asked` of `{"ids": [...], "top": [[[id,
log-probability], ...], ...]}`; where the consumer cannot do what was asked `{"reason": ...}`.
"""
