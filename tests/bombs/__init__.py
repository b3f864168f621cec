"""Small files that unfold into large ones, and what never ends: one error each, soon and in little memory."""
