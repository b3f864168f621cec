"""Training losses, token by token (method, section 4): one file each, registered under the entry points
`koffkit.losses`.

`base` defines a loss, `chunked` computes one without ever holding the logits of all tokens.
"""
