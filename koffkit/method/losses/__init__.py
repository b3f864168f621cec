"""What the student is trained on, token by token (method, section 4): one file a loss, found by entry point
(`koffkit.losses`).

`base` says what a loss is, `chunked` computes one without ever holding the logits of all tokens.
"""
